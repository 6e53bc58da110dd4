"""Deaths of the host in virtual time."""

import random

import pytest
from robot_moves import move

from featherweight.robot.virtual_robot import VirtualRobot


@pytest.mark.parametrize("lookahead", [3, 5])
def test_a_host_that_dies_at_any_moment_leaves_an_arm_that_stops_within_the_lookahead(lookahead):
    chance = random.Random(0)
    worst = 0
    for _ in range(30):
        robot = VirtualRobot(lookahead_deg=lookahead)
        robot.core.sync_speed_deg_s = 90
        robot.advance(0.2)
        move(robot, [chance.uniform(-90, 90) for _ in range(6)])
        robot.advance(0.2 + chance.uniform(0, 1.0))
        reported = robot.reported_deg()
        robot.is_host_alive = False
        robot.advance(robot.now_s + 2.0)
        final = list(robot.kit.firmware.current_deg)
        worst = max(worst, max(abs(f - r) for f, r in zip(final, reported, strict=True)))
        robot.advance(robot.now_s + 1.0)
        assert robot.kit.firmware.current_deg == final

    assert worst <= lookahead
