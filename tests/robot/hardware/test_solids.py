"""Solids by centre and axis."""

import math

import numpy as np
import pytest

from featherweight.robot.hardware.dimensions import MICRO
from featherweight.robot.hardware.solids import box, cylinder, placed, rotation, servo_solid, shift, triangles


def test_a_cylinder_along_each_axis_lies_where_it_was_asked_for():
    for axis, expected in (
        ("x", [1, 2, 3, 5, 6, 7]),
        ("y", [2, 1, 3, 6, 5, 7]),
        ("z", [2, 3, 1, 6, 7, 5]),
    ):
        found = cylinder(axis, 2, 1, 5, {"x": (4, 5), "y": (4, 5), "z": (4, 5)}[axis]).bounding_box()
        assert np.allclose(found, expected, atol=0.01), axis


def test_transforms_turn_before_they_shift():
    solid = placed(box((0, 1), (0, 2), (0, 3)), shift(10, 0, 0) @ rotation("z", 90))
    assert np.allclose(solid.bounding_box(), [8, 0, 0, 10, 1, 3])


def test_a_servo_has_the_volume_of_its_blocks():
    m = MICRO
    blocks = m.length * m.width * m.height + (m.ear_length - m.length) * m.width * m.ear_thickness
    horn = math.pi * m.horn_radius**2 * (m.horn_top - m.height)
    assert servo_solid(m).volume() == pytest.approx(blocks + horn, rel=0.01)  # 48 edges for the circle
    vertices, faces = triangles(servo_solid(m))
    assert vertices.shape[1] == faces.shape[1] == 3
