"""The parameter file."""

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.hardware.assembly import Assembly
from featherweight.robot.hardware.dimensions import STANDARD, Dimensions


def test_a_pinion_of_the_kit_opens_the_fingers_by_fifty_millimetres():
    assert 2 * Dimensions().pinion_radius * 3.14159 == pytest.approx(50.3, abs=0.1)


def test_another_servo_makes_another_arm_that_still_fits_together():
    wider = STANDARD.model_copy(update={"width": 20.3, "length": 41.2})
    other = Assembly(Dimensions(standard=wider))
    assert other.intersections([0, 20, 30, 40, -50, 0]) == {}
    assert [piece.name for piece in other.pieces if len(piece.solid.decompose()) != 1] == []


def test_a_wrong_number_is_refused_with_its_name():
    with pytest.raises(ConfigError, match="clearance"):
        Dimensions.parse({"clearance": -1}, where="test")
