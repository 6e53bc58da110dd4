"""A master of your own: any shape with six potentiometers. Change it, then: fw robot kit check my_master.stl

Run this file to write my_master.stl. The kit's cube has one slide and one rotary potentiometer for each axis; this one
is lower and has a rest for the hand.
"""

from pathlib import Path

from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.master import EDGE, cube
from featherweight.robot.hardware.solids import Solid, box, union
from featherweight.robot.hardware.stl import stl_bytes


def build(dimensions: Dimensions) -> Solid:
    """Return the shell in millimetres."""
    half = EDGE / 2
    rest = box((-half - 60, -half + 1), (-half, half), (0, 18))
    return union([cube(dimensions), rest])


if __name__ == "__main__":
    Path("my_master.stl").write_bytes(stl_bytes(build(Dimensions())))
