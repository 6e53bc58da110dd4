"""Eleven numbers from dots."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.camera.calibrate import MIN_PICTURES, calibrate_camera, fit, gripper_dots
from featherweight.robot.camera.fiducial import TABLE_CARD
from featherweight.robot.camera.pinhole import Pinhole, rotation
from featherweight.robot.sim.photographs import calibration_poses

CAMERA = Pinhole(640, 480, 42.0)
OFFSETS = np.array([3.0, -3.0, 4.0, -2.0, 5.0])


def seen(noise_px=0.0, count=20):
    """Return (angles, dots on the gripper, dots on the table, pose) of a camera in front of the arm."""
    poses = calibration_poses(count)[:, :5]
    down = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], dtype=float)
    pose = np.eye(4)
    pose[:3, :3] = rotation([0.55, 0.05, 0.0]) @ down
    pose[:3, 3] = -pose[:3, :3] @ [0.55, 0.0, 0.33]
    noise = np.random.default_rng(1).normal(0, noise_px, (2, count, 4, 2))
    dots = CAMERA.project(gripper_dots(poses, OFFSETS), pose) + noise[0]
    table = CAMERA.project(np.broadcast_to(TABLE_CARD.dots_m, (count, 4, 3)), pose) + noise[1]
    return poses, dots, table, pose


def test_without_noise_offsets_and_pose_are_exact():
    poses, dots, table, pose = seen()
    table[3] = np.nan  # hidden by the arm
    found = fit(poses, dots, table, CAMERA)
    np.testing.assert_allclose(found.zero_offset_deg, OFFSETS, atol=1e-5)
    np.testing.assert_allclose(found.pose, pose, atol=1e-6)
    assert found.error_px < 1e-5 and found.dots == 20 * 8 - 4
    np.testing.assert_allclose(found.camera_m, [0.55, 0.0, 0.33], atol=1e-6)


def test_what_noise_does_is_told_and_a_wrong_dot_hardly_matters():
    poses, dots, table, _ = seen(noise_px=0.3)
    found = fit(poses, dots, table, CAMERA)
    off = np.abs(np.array(found.zero_offset_deg) - OFFSETS)
    assert (off < 4 * np.array(found.deviation_deg)).all() and max(found.deviation_deg) < 0.15
    dots[5, 2] += 20
    again = fit(poses, dots, table, CAMERA)
    assert np.abs(np.array(again.zero_offset_deg) - OFFSETS).max() < 0.3


def test_pictures_without_cards_and_a_camera_that_moved_are_one_sentence():
    blank = [np.zeros((48, 64, 3), dtype=np.uint8)] * 20
    with pytest.raises(ConfigError, match=f"pictures=0 of 20 show the card .*; expected at least {MIN_PICTURES}"):
        calibrate_camera([(0.0,) * 6] * 20, blank, 42.0)
    poses, dots, table, _ = seen()
    dots[10:] += 40
    with pytest.raises(ConfigError, match="error_px=.* is too large; expected below 3"):
        fit(poses, dots, table, CAMERA)
