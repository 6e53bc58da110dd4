"""Slower near singularities."""

import numpy as np

from featherweight.robot.control import TaskController, singularity_scale
from featherweight.robot.kinematics import wrist_point


def test_twists_move_the_wrist_as_wanted_and_stop_in_singularities():
    controller = TaskController()
    q = np.radians([10, 20, -20, 0, -60])
    after = controller.twist(q, [0.05, 0.0, 0.02])

    np.testing.assert_allclose(wrist_point(after) - wrist_point(q), np.array([0.05, 0, 0.02]) * 0.008, atol=2e-6)
    stretched = np.radians([0, 0, 89.9, 0, 0])
    assert singularity_scale(q) == 1.0 and singularity_scale(stretched) == 0.0
    np.testing.assert_array_equal(controller.twist(stretched, [0, 0, 0.05]), stretched)
