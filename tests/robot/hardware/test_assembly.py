"""The assembled arm."""

import numpy as np
import pytest

from featherweight.robot.kinematics.dh import tool_point
from featherweight.robot.safety.guard import clearance


def postures(count, seed):
    """Random postures that the driver's guard lets through."""
    generator, found = np.random.default_rng(seed), []
    while len(found) < count:
        posture = generator.uniform(-90, 90, 6)
        if clearance(posture) >= 0:
            found.append(posture)
    return found


def test_bodies_stand_where_the_kinematics_have_the_tool(assembly):
    for posture in postures(5, seed=1):
        tool = assembly.poses(posture)[5] @ np.array([0, -85.0, 0, 1])
        assert np.allclose(tool[:3] / 1e3, tool_point(np.radians(posture[:5])), atol=1e-9)


def test_at_two_hundred_postures_that_the_driver_allows_no_two_links_intersect(assembly):
    hits = [
        (posture.round().tolist(), found)
        for posture in postures(200, seed=0)
        if (found := assembly.intersections(posture))
    ]
    assert hits == []


@pytest.mark.slow
def test_neighbours_in_a_joint_and_in_the_gear_do_not_intersect_either(assembly):
    assert [
        found for posture in postures(200, seed=2) if (found := assembly.intersections(posture, neighbours=True))
    ] == []


def test_an_arm_folded_into_its_turret_is_found(assembly):
    assert ("link1", "link4") in assembly.intersections([0, -88, -79, 33, 35, 14])
