"""The target of the servos: speed, rounding, bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from robot_moves import move

from featherweight.robot.driver.target import Target, round_with_hysteresis
from featherweight.robot.virtual_robot import VirtualRobot


def test_a_speed_limit_holds_and_all_joints_arrive_together():
    robot = VirtualRobot()
    robot.core.sync_speed_deg_s = 40
    robot.advance(0.2)
    move(robot, [40, 20, -10, 0, 0, 0], speed=40)
    robot.advance(0.7)
    halfway = robot.reported_deg()

    # 40 degrees a second for half a second, less the two or three lines that a command takes.
    assert 17 <= halfway[0] <= 20
    assert halfway[1] == pytest.approx(halfway[0] / 2, abs=1.1) and halfway[2] == pytest.approx(
        -halfway[0] / 4, abs=1.1
    )


@given(st.floats(-90, 90))
def test_a_constant_wish_never_changes_its_integer(value):
    first = round_with_hysteresis(value, None)

    assert abs(first - value) <= 0.5
    assert all(round_with_hysteresis(value + wiggle, first) == first for wiggle in (-0.09, 0.0, 0.09))


@given(
    st.lists(st.integers(-90, 90), min_size=6, max_size=6),
    st.lists(st.floats(-1000, 1000), min_size=6, max_size=6),
    st.floats(0, 1),
)
def test_a_target_stays_within_limits_and_lookahead(reported, goal, elapsed_s):
    target = Target(lookahead_deg=3)

    for _ in range(3):
        sent = target.advance(reported, goal, 80.0, elapsed_s)

        assert all(abs(s) <= 90 and abs(s - r) <= 3 for s, r in zip(sent, reported, strict=True))
