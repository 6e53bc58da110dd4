"""Many runs in one row."""

import csv
import re
from dataclasses import fields
from pathlib import Path

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


def test_the_table_of_the_docs_is_made_of_the_rows_of_the_runs():
    """Every operator over every network has the same twelve layouts, and each number is what the rows give."""
    root = Path(__file__).parents[3]
    with (root / "benchmarks" / "results" / "robot_policies.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    kinds = {one.name: int if one.type in (int, "int") else float for one in fields(Score)}
    page = (root / "docs" / "robot_demos.md").read_text()
    table = re.findall(
        r"^\| (hand|policy)([^|]*) \| (\d+)[^|]*\| (\d+) of (\d+) [^|]*\| ([\d.]+) [^|]*\| ([\d.]+) ", page, re.M
    )
    assert len(table) == 20
    for kind, words, delay, complete, count, points, time_s in table:
        hand = "eager" if "never" in words else "hand"
        operator = (
            kind
            if kind == "policy"
            else {"hand": "shared", "eager": "shared-eager"}[hand]
            if "helped" in words
            else hand
        )
        found = [
            Score(**{name: to(run[name]) for name, to in kinds.items()})
            for run in runs
            if run["operator"] == operator
            and re.match(r"\d+", run["network"])[0] == delay
            and int(run["seed"]) < 10_012
        ]
        row = summarize(found)
        assert (row.complete, row.runs) == (int(complete), int(count)) == (12, 12)
        assert (f"{row.points:.1f}", f"{row.time_s:.1f}") == (points, time_s)
