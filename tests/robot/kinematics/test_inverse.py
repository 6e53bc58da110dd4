"""The closed form."""

import numpy as np
from robot_postures import random_angles

from featherweight.robot.kinematics import (
    approach_angles,
    forward,
    nearest_position,
    position_angles,
    table_top,
    tool_point,
    wrist_point,
)


def test_closed_form_inverse_returns_the_angles_that_made_the_point():
    q = random_angles(100_000)
    # Near the borders of the limits two branches may both fit; nothing else is left out.
    inner = q[np.all(np.abs(q[:, :3]) < np.radians(89.9), axis=1)]

    found = position_angles(wrist_point(inner))
    reached = np.zeros((len(inner), 5))
    reached[:, :3] = found

    assert not np.isnan(found).any()
    assert np.abs(wrist_point(reached) - wrist_point(inner)).max() < 1e-9


def test_points_out_of_reach_are_nan_and_have_a_nearest_one_within_the_limits():
    assert np.isnan(position_angles([0.5, 0, 0.1])).all() and np.isnan(position_angles([0.0, 0.0, 0.03])).all()
    for point in ([0.5, 0, 0.1], [0, 0, 0.0245], [-0.2, 0, -0.2], [0, 0, 1.0]):
        joints = np.array(nearest_position(point))
        assert np.isfinite(joints).all() and np.abs(joints).max() <= np.pi / 2
    np.testing.assert_allclose(
        wrist_point([*nearest_position([0.6, 0, 0.0245]), 0, 0]), [0.24649, 0, 0.0245], atol=1e-9
    )


def test_the_tool_is_turned_to_the_wanted_direction():
    for q in random_angles(200):
        direction = -forward(q)[1][:, 1]
        turned = q.copy()
        turned[3:] = approach_angles(q[:3], direction)

        np.testing.assert_allclose(-forward(turned)[1][:, 1], direction, atol=1e-12)
        assert abs(turned[3]) <= np.pi / 2


def test_table_top_poses_reach_their_points_as_steeply_as_the_limits_allow():
    reached = 0
    for radius in np.linspace(0.105, 0.26, 20):
        for z in (0.012, 0.055, 0.065):
            q = table_top([radius * np.cos(0.5), radius * np.sin(0.5), z])
            np.testing.assert_allclose(tool_point(q), [radius * np.cos(0.5), radius * np.sin(0.5), z], atol=1e-12)
            assert np.abs(q).max() <= np.pi / 2
            reached += 1
    assert reached == 60
    assert table_top([0.17, 0, 0.012], elevation_deg=-90) is not None
    assert table_top([0.4, 0, 0.05]) is None and table_top([0.17, 0, 0.4]) is None
