"""The master device: a cube with three slide and three rotary potentiometers, and its bottom.

One slide and one rotary potentiometer for each axis: translation and rotation, or six joints. Slides of 60 mm travel
lie in the top, rotary ones of 16 mm stand in the front.
"""

from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.solids import Solid, box, cylinder, union

EDGE, HEIGHT = 104.0, 62.0
SLIDE_SLOT, SLIDE_SCREWS, SLIDE_WIDTH = 66.0, 80.0, 4.0
"""Of a slide potentiometer with 60 mm of travel: slot of the lever, distance of the two M3 screws, width of the
slot."""
ROTARY_HOLE = 7.3
"""For the thread of a 16 mm rotary potentiometer."""


def cube(d: Dimensions) -> Solid:
    """Return the shell, open below; printed upside down."""
    half, wall = EDGE / 2, d.wall
    shell = box((-half, half), (-half, half), (0, HEIGHT))
    shell -= box((-half + wall, half - wall), (-half + wall, half - wall), (-1, HEIGHT - wall))
    corners = union(
        box(
            (a * (half - 10) - 5, a * (half - 10) + 5),
            (b * (half - 10) - 5, b * (half - 10) + 5),
            (3, HEIGHT - wall + 1),
        )
        for a in (-1, 1)
        for b in (-1, 1)
    )
    corners = corners ^ box((-half + 1, half - 1), (-half + 1, half - 1), (0, HEIGHT))
    body = union([shell, corners])
    for row in (-24, 0, 24):
        body -= box((-SLIDE_SLOT / 2, SLIDE_SLOT / 2), (row - SLIDE_WIDTH / 2, row + SLIDE_WIDTH / 2), (40, HEIGHT + 1))
        for side in (-1, 1):
            body -= cylinder("z", d.screw / 2, HEIGHT - wall - 1, HEIGHT + 1, (side * SLIDE_SCREWS / 2, row))
    for column in (-28, 0, 28):
        body -= cylinder("x", ROTARY_HOLE / 2, half - wall - 1, half + 1, (column, 28))
    body -= box((-half - 1, -half + wall + 1), (-8, 8), (-1, 12))
    return body - _corner_screws(2.7, -1, 14)


def bottom(d: Dimensions) -> Solid:
    """Return the bottom with a rim that fits into the shell."""
    half, wall = EDGE / 2, d.wall
    inner = half - wall - d.clearance
    rim = box((-inner, inner), (-inner, inner), (0, 2.6)) - box(
        (-inner + 2, inner - 2), (-inner + 2, inner - 2), (-1, 3)
    )
    plate = box((-half, half), (-half, half), (-wall, 0))
    return union([plate, rim]) - _corner_screws(d.screw, -wall - 1, 4)


def _corner_screws(diameter: float, start: float, end: float) -> Solid:
    place = EDGE / 2 - 10
    return union(cylinder("z", diameter / 2, start, end, (a * place, b * place)) for a in (-1, 1) for b in (-1, 1))
