"""From signals to joint angles."""

import numpy as np
import pytest

from featherweight.robot.kinematics import tool_point
from featherweight.robot.leaders.mapping import JointMap, PoseMap, RateIntegrator


def test_joint_maps_and_pose_maps():
    swapped = JointMap(source=[1, 0, 2, 3, 4, 5], gain=[0.5, -1, 1, 1, 1, 1], offset_deg=[0, 0, 10, 0, 0, 0])
    assert swapped.apply((10, 20, 30, 40, 50, 60)) == (10, -10, 40, 40, 50, 60)

    pose = PoseMap()
    for signals in ((0, 0, 0, 0, 0, 30), (90, 0, 0, 0, 0, 30), (0, 90, -90, 0, 0, 30), (90, 90, 90, 0, 0, 30)):
        joints = pose.apply(signals)
        assert max(map(abs, joints)) <= 90 and joints[5] == 30
    np.testing.assert_allclose(tool_point(np.radians(pose.apply((0,) * 6)[:5])), pose.center_m, atol=1e-9)


def test_rates_decay_within_a_tenth_of_a_second_of_silence():
    rates = RateIntegrator()
    rates.start_at((0,) * 6)
    rates.advance(0.0)
    now = 0.0
    for _ in range(60):
        now += 1 / 60
        rates.renew((30, 0, 0, 0, 0, 0), now)
        moved = rates.advance(now)[0]
    assert moved == pytest.approx(30, abs=0.6)
    track = [rates.advance(now + i / 60)[0] for i in range(1, 60)]

    assert track[5] == track[-1] and track[-1] - moved < 30 * 0.1


def test_twist_rates_move_the_wrist():
    rates = RateIntegrator("twist")
    start = (10.0, 20.0, -20.0, 0.0, -60.0, 0.0)
    rates.start_at(start)
    rates.advance(0.0)
    for i in range(1, 31):
        rates.renew((50, 0, 0, 0, 0, 0), i / 60)
        after = rates.advance(i / 60)

    moved = tool_point(np.radians(after[:5]), 0) - tool_point(np.radians(start[:5]), 0)
    np.testing.assert_allclose(moved, [0.025, 0, 0], atol=1.5e-3)
