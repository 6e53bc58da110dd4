"""What a policy sees."""

import numpy as np

from featherweight.robot.kinematics import table_top
from featherweight.robot.learning.state import FEATURE_NAMES, state_features


def test_features_of_forward_kinematics_say_where_the_cube_is_from_the_tool():
    joints = np.degrees(table_top([0.15, 0.05, 0.03]))
    scene = [0.17 * np.cos(0.2), 0.17 * np.sin(0.2), 0.011, 1.0, 0.0, 0.0, 0.16]
    told = dict(zip(FEATURE_NAMES, state_features([*joints, 30.0], scene), strict=True))
    assert abs(told["tool_r"] - np.hypot(0.15, 0.05)) < 1e-9 and abs(told["tool_z"] - 0.03) < 1e-9
    assert abs(told["cube_r_from_tool"] - (0.17 - np.hypot(0.15, 0.05))) < 1e-9
    assert abs(told["cube_angle_from_arm"] - (0.2 - np.arctan2(0.05, 0.15))) < 1e-9
    assert abs(told["tool_height_over_cube"] - 0.019) < 1e-9 and told["gripper.pos"] == 30 / 90


def test_many_states_are_done_at_once():
    generator = np.random.default_rng(0)
    q, scene = generator.uniform(-60, 60, (4, 6)), generator.uniform(-0.2, 0.2, (4, 7))
    together = state_features(q, scene)
    assert together.shape == (4, len(FEATURE_NAMES))
    np.testing.assert_array_equal(together, [state_features(one, at) for one, at in zip(q, scene, strict=True)])
