"""A simulated arm behind the real driver."""

import time

import numpy as np
import pytest

from featherweight import robot as fwr
from featherweight.errors import DeviceError
from featherweight.robot.kit import JOINT_KEYS


def test_a_simulated_robot_is_driven_through_the_real_driver_and_gives_pictures(graphics):
    config = fwr.SimRobotConfig(cameras=("front",), width_px=160, height_px=120)
    with fwr.SimRobot(config) as robot:
        assert robot.observation_features["front"] == (120, 160, 3)
        robot.send_action(dict(zip(JOINT_KEYS, [15, 10, 0, 0, -40, 30], strict=True)))
        deadline = time.monotonic() + 6
        while robot.reported_deg() != (15, 10, 0, 0, -40, 30) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        observation = robot.get_observation()
        np.testing.assert_allclose(np.degrees(robot.world.joints_rad), [15, 10, 0, 0, -40], atol=1.5)
    assert observation["front"].shape == (120, 160, 3)
    assert set(observation) == {*JOINT_KEYS, "front"}


def test_a_sim_robot_that_is_not_connected_says_so():
    with pytest.raises(DeviceError, match="is not connected"):
        fwr.SimRobot().get_observation()
