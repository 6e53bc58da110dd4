"""Many runs in one row."""

import pytest

from featherweight.robot.challenge.score import Score
from featherweight.robot.challenge.summary import summarize


def score(points, placed, time_s):
    return Score(points, placed, 2, time_s, 1, 0, 0, 1.5, -8.0, -22.0, 0.5, 150.0)


def test_a_row_says_how_often_everything_was_placed_and_how_sure_the_means_are():
    row = summarize([score(118.0, 2, 20.0), score(50.0, 1, 180.0), score(116.0, 2, 40.0)])
    assert (row.runs, row.complete, row.drops, row.spectral_arc_length) == (3, 2, 1.0, -8.0)
    assert row.complete_interval == pytest.approx((0.208, 0.939), abs=1e-3)
    assert row.points == pytest.approx(94.667, abs=1e-3) and row.time_s == 80.0
    assert row.points_interval[0] < row.points < row.points_interval[1]
    assert row.spectral_arc_length_interval == (-8.0, -8.0)
