"""The guard knows the table and the arm."""

import numpy as np

from featherweight.robot.kinematics import table_top
from featherweight.robot.safety.guard import clearance, way_is_free


def test_the_guard_knows_table_base_and_upper_arm():
    assert clearance([0] * 6) > 0.05
    assert clearance([0, 90, 0, 0, 0]) < -0.1  # stretched down, through the table
    assert clearance([0, -90, 90, 0, 0]) > 0
    assert clearance([0, 0, -90, 0, -90]) < 0  # the hand in the base
    for radius in np.linspace(0.105, 0.26, 20):
        grasp = table_top([radius, 0, 0.012])
        assert clearance(np.degrees(grasp)) >= 0.003


def test_the_guard_looks_at_the_way_and_lets_the_arm_leave():
    low = np.degrees(table_top([0.17, 0, 0.012]))
    one, other = [-60.0, *low[1:]], [60.0, *low[1:]]
    assert way_is_free(one, other)  # a turn about the base sweeps over the table
    assert not way_is_free([0] * 6, [0, 90, 0, 0, 0, 0])
    inside = [0, 60, 0, 0, 0, 0]
    assert clearance(inside) < 0
    assert way_is_free(inside, [0] * 6) and not way_is_free(inside, [0, 65, 0, 0, 0, 0])
