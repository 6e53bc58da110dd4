"""The camera stand: a foot, a post of two halves, and a tray for a USB camera that looks at the table."""

from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.solids import Solid, box, cylinder, union

POST = (14.0, 10.0)
HALF_POST = 165.0
SOCKET = 24.0


def foot(d: Dimensions) -> Solid:
    """Return the foot with a socket for the post and four holes for table screws."""
    a, b = POST[0] / 2 + d.clearance, POST[1] / 2 + d.clearance
    plate = box((-50, 50), (-40, 40), (0, 5))
    socket = box((-a - 4, a + 4), (-b - 4, b + 4), (0, 5 + SOCKET)) - box((-a, a), (-b, b), (5, 6 + SOCKET))
    holes = union(cylinder("z", 2.6, -1, 6, (x, y)) for x in (-42, 42) for y in (-32, 32))
    return union([plate, socket]) - holes - cylinder("x", d.screw / 2, -a - 5, a + 5, (0.0, 5 + SOCKET / 2))


def post(d: Dimensions) -> Solid:
    """Return one of the two halves of the post, lying: a bar along x with a screw hole at each end."""
    bar = box((0, HALF_POST), (-POST[1] / 2, POST[1] / 2), (0, POST[0]))
    holes = union(cylinder("y", d.screw / 2, -20, 20, (at, POST[0] / 2)) for at in (SOCKET / 2, HALF_POST - SOCKET / 2))
    return bar - holes


def sleeve(d: Dimensions) -> Solid:
    """Return the sleeve that joins the halves."""
    a, b = POST[0] / 2 + d.clearance, POST[1] / 2 + d.clearance
    body = box((-a - 3, a + 3), (-b - 3, b + 3), (0, 2 * SOCKET)) - box((-a, a), (-b, b), (-1, 2 * SOCKET + 1))
    return body - union(cylinder("y", d.screw / 2, -20, 20, (0.0, at)) for at in (SOCKET / 2, 1.5 * SOCKET))


def tray(d: Dimensions) -> Solid:
    """Return the tray: a cap on the post and an arm with slots for a camera of up to 75 mm."""
    a, b = POST[0] / 2 + d.clearance, POST[1] / 2 + d.clearance
    cap = box((-a - 3, a + 3), (-b - 3, b + 3), (0, SOCKET)) - box((-a, a), (-b, b), (4, SOCKET + 1))
    arm = box((a, 90), (-b - 3, b + 3), (0, 5))
    table = box((60, 95), (-40, 40), (0, 4))
    slots = union(box((68, 88), (side * 30 - 1.7, side * 30 + 1.7), (-1, 6)) for side in (-1, 1))
    lens = cylinder("z", 3.3, -1, 6, (78.0, 0.0))
    return union([cap, arm, table]) - slots - lens - cylinder("y", d.screw / 2, -20, 20, (0.0, SOCKET / 2))
