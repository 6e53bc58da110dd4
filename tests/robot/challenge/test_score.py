"""Points from records."""

import numpy as np
import pytest

from featherweight.robot.challenge.score import (
    FPS,
    PlacedRule,
    count_collisions,
    log_dimensionless_jerk,
    score_log,
    spectral_arc_length,
)

BIN = [0.0, 0.17, 0.0]


def records(heights, seconds=6.0, end=(0.0, 0.17), hits=(), guard_trips=0):
    """Return a run in which one cube follows a list of heights over the first half, then lies at `end`."""
    frames = []
    for i in range(round(seconds * FPS)):
        t = i / FPS
        share = min(1.0, t / (seconds / 2))
        height = float(np.interp(share, np.linspace(0, 1, len(heights)), heights))
        x, y = 0.2 + (end[0] - 0.2) * share, end[1] * share
        hit = [["link3", "world"]] if any(abs(t - at) < 0.5 / FPS for at in hits) else []
        frames.append(
            {
                "kind": "frame",
                "t": t,
                "tool": [x, y, height],
                "cubes": [[x, y, height]],
                "gripper": 60.0 if share == 1 else -20.0,
                "mode": "ACTIVE",
                "hits": hit,
            }
        )
    start = {"kind": "start", "cubes": 1, "bin": BIN, "half": 0.04}
    return [start, *frames, {"kind": "end", "guard_trips": guard_trips, "round_trip_ms": 12.0}]


def test_a_placed_cube_is_worth_100_and_the_time_that_is_left():
    score = score_log(records([0.011, 0.08, 0.08, 0.011]))
    assert (score.placed, score.drops, score.collisions) == (1, 0, 0)
    # It lies still from second 3 on, for one second and the step in which its speed is seen to be zero.
    assert score.time_s == pytest.approx(4.0, abs=2 / FPS)
    assert score.points == pytest.approx(100 + 20 * (1 - score.time_s / 180), abs=1e-3)


def test_a_cube_beside_the_bin_was_dropped_and_points_never_fall_below_zero():
    score = score_log(records([0.011, 0.08, 0.011], end=(0.2, 0.0), hits=(1.0, 2.0), guard_trips=2))
    assert (score.placed, score.drops, score.collisions, score.points) == (0, 1, 2, 0.0)


def test_hits_of_one_pair_within_half_a_second_are_one_collision():
    assert count_collisions([(1.0, ("a", "b")), (1.3, ("a", "b")), (1.7, ("a", "b")), (1.7, ("a", "c"))]) == 2
    assert count_collisions([(1.0, ("a", "b")), (1.6, ("a", "b"))]) == 2


def test_smoothness_tells_a_smooth_move_from_a_jerky_one_at_any_speed():
    t = np.linspace(0, 1, 91)
    smooth = 30 * t**2 * (1 - t) ** 2
    jerky = smooth * (1 + 0.5 * np.sign(np.sin(40 * t)))
    assert spectral_arc_length(smooth) > spectral_arc_length(jerky)
    assert log_dimensionless_jerk(smooth) > log_dimensionless_jerk(jerky)
    # Both are free of units.
    assert spectral_arc_length(5 * smooth) == pytest.approx(spectral_arc_length(smooth))
    assert log_dimensionless_jerk(5 * smooth) == pytest.approx(log_dimensionless_jerk(smooth))
    assert spectral_arc_length(np.zeros(50)) == log_dimensionless_jerk(np.zeros(50)) == 0.0


def test_a_cube_that_slides_in_the_bin_counts_once_it_has_lain_still_for_a_second():
    rule = PlacedRule(BIN, 0.04)
    for i in range(60):
        # Inside of the zone and let go from the first frame on, at 10 mm/s for a second.
        rule.see(i / FPS, (0.0, 0.15 + 0.01 * min(i / FPS, 1.0), 0.011), 60.0)
        assert rule.at_s is None
    rule.see(2.0, (0.0, 0.16, 0.011), 60.0)
    rule.see(61 / FPS, (0.0, 0.16, 0.011), 60.0)
    assert rule.at_s == pytest.approx(61 / FPS)
    held = PlacedRule(BIN, 0.04)
    for i in range(90):
        held.see(i / FPS, (0.0, 0.16, 0.011), -45.0)
    assert held.at_s is None  # the gripper still holds it
