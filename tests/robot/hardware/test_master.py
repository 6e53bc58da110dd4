"""The master cube."""

from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.master import EDGE, HEIGHT, ROTARY_HOLE, SLIDE_SLOT, bottom, cube
from featherweight.robot.hardware.solids import box, cylinder


def test_three_slides_and_three_rotary_potentiometers_go_through_the_walls():
    shell = cube(Dimensions())
    for row in (-24, 0, 24):
        assert (shell ^ box((-SLIDE_SLOT / 2, SLIDE_SLOT / 2), (row - 1.9, row + 1.9), (50, HEIGHT + 1))).volume() == 0
    for column in (-28, 0, 28):
        thread = cylinder("x", ROTARY_HOLE / 2 - 0.1, EDGE / 2 - 9, EDGE / 2 + 1, (column, 28))
        assert (shell ^ thread).volume() == 0


def test_the_bottom_fits_into_the_shell():
    d = Dimensions()
    assert (cube(d) ^ bottom(d)).volume() < 1e-6
