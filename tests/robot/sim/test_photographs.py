"""The simulator takes pictures of an arm with errors of assembly; they are found."""

import numpy as np
import pytest

from featherweight.robot.camera.calibrate import calibrate_camera
from featherweight.robot.kinematics.dh import tool_point
from featherweight.robot.sim.photographs import LOWEST_M, calibration_poses, model_errors_m, take_pictures
from featherweight.robot.sim.world import World

pytest.importorskip("mujoco")
OFFSETS = (2.0, -3.0, 4.0, -2.0, 3.0, 0.0)


def test_poses_are_whole_degrees_above_the_table_and_the_same_each_time():
    poses = calibration_poses(10)
    assert (poses == poses.round()).all() and (tool_point(np.radians(poses[:, :5]))[:, 2] > LOWEST_M).all()
    np.testing.assert_array_equal(calibration_poses(10), poses)


@pytest.mark.slow
def test_thirty_pictures_bring_the_model_within_a_millimetre(graphics):
    world, poses = World("empty", zero_offset_deg=OFFSETS, cards=True), calibration_poses(30)
    found = calibrate_camera(list(poses), take_pictures(world, poses), 42.0)
    # Gravity turns the shoulder by a few tenths of a degree, which the offset takes in.
    assert np.abs(np.array(found.zero_offset_deg) - OFFSETS[:5]).max() < 0.4
    np.testing.assert_allclose(found.camera_m, [0.55, 0, 0.33], atol=0.003)
    others = calibration_poses(8, seed=1)
    before, after = (model_errors_m(world, others, zeros) for zeros in ([0.0] * 5, found.zero_offset_deg))
    assert before.mean() > 0.02 and after.mean() < 0.001
