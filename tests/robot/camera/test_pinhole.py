"""Points become pixels, and pixels a pose."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.camera.pinhole import Pinhole, rotation

CAMERA = Pinhole(641, 481, 90.0)


def test_the_axis_meets_the_middle_and_the_angle_of_view_the_border():
    points = [[0, 0, 2.0], [0, 2.0, 2.0], [-1.0, 0, 1.0]]
    pixels = CAMERA.project(points, np.eye(4))
    np.testing.assert_allclose(pixels, [[320, 240], [320, 240 + 240.5], [320 - 240.5, 240]])


def test_a_pose_is_found_from_points_in_space():
    generator = np.random.default_rng(0)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation([0.3, 2.0, -0.4]), [0.05, -0.1, 0.6]
    points = generator.uniform(-0.1, 0.1, (12, 3))
    np.testing.assert_allclose(CAMERA.find_pose(points, CAMERA.project(points, pose)), pose, atol=1e-6)


def test_points_that_tell_no_pose_are_one_sentence():
    flat = np.random.default_rng(0).uniform(-0.1, 0.1, (12, 3)) * [1, 1, 0] + [0, 0, 0.5]
    with pytest.raises(ConfigError, match="all in one plane"):
        CAMERA.find_pose(flat, CAMERA.project(flat, np.eye(4)))
    with pytest.raises(ConfigError, match="points=5 are too few"):
        CAMERA.find_pose(np.zeros((5, 3)), np.zeros((5, 2)))


def test_rotations_are_orthogonal_and_turn_by_the_length_of_their_vector():
    turn = rotation([0, 0, np.pi / 2])
    np.testing.assert_allclose(turn @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation([0.4, -1.2, 2.0]) @ rotation([-0.4, 1.2, -2.0]), np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(rotation([0, 0, 0]), np.eye(3))
