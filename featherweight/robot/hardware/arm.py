"""Base and links 1 to 4 of the arm, each in the frame of its body; the D-H numbers are those of the kinematics.

Body i turns with joint i about its z axis; body 0 stands on the table. Seen from behind the arm at zero: the turret
carries servo 2 across, the upper arm is a plate on its right side, so that the forearm passes the upper arm and folds
fully; servo 3 sits outside of that plate, servo 4 lies in the forearm's axis, servo 5 at its end. A servo's case
belongs to the body before its joint.
"""

from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.solids import (
    Solid,
    box,
    cylinder,
    ear_holes,
    horn_holes,
    hull,
    placed,
    rotation,
    servo_solid,
    shift,
    union,
)
from featherweight.robot.kinematics.dh import BASE_HEIGHT_M, FOREARM_M, SHOULDER_M, UPPER_ARM_M, Array

BASE, SHOULDER = BASE_HEIGHT_M * 1e3, SHOULDER_M * 1e3
UPPER_ARM, FOREARM = UPPER_ARM_M * 1e3, FOREARM_M * 1e3

SIDE = 33.0
"""The inner face of the upper arm's plate lies this far from the plane of the arm, on its right."""
ELBOW_SIDE = 16.0
"""The outer face of the forearm's bracket."""
FOREARM_SERVO = -6.0
"""The bottom of servo 4, along the forearm from the elbow."""
WRIST_HORN = 15.0
"""The face of servo 5's horn, along the wrist's axis."""


def servo_places(d: Dimensions) -> list[tuple[int, Array]]:
    """Return (body that carries it, (4, 4) pose of `servo_solid` in that body's frame) of servos 1 to 5."""
    s, m = d.standard, d.micro
    return [
        (0, shift(0, 0, BASE - s.horn_top)),
        # Shaft to the right (-y of body 1), case to the back.
        (1, shift(0, s.horn_top - SIDE, SHOULDER) @ rotation("x", 90)),
        # Shaft to the left (+z of body 2), case along the arm towards the shoulder.
        (2, shift(UPPER_ARM, 0, -ELBOW_SIDE - s.horn_top)),
        # Shaft along the forearm (-y of body 3), case up (+x at zero).
        (3, shift(0, -FOREARM_SERVO, 0) @ rotation("x", 90) @ rotation("z", 180)),
        # Shaft across (+y of body 4), case back along the forearm.
        (4, shift(0, WRIST_HORN - m.horn_top, FOREARM) @ rotation("x", -90) @ rotation("z", -90)),
    ]


def _pocket(d: Dimensions, number: int) -> Solid:
    """Return the cavity of a servo and its ears' screw holes, in the frame of the body that carries it."""
    servo = d.standard if number < 4 else d.micro
    screw = d.screw if number < 4 else d.screw_small
    reach = 12.0
    cavity = union(
        [
            servo_solid(servo, d.clearance),
            ear_holes(servo, screw, servo.ear_bottom - reach, servo.ear_bottom + reach),
        ]
    )
    return placed(cavity, servo_places(d)[number][1])


def base(d: Dimensions) -> Solid:
    """Return the base: a foot with screw holes and a house for servo 1; the cables leave at the back."""
    s = d.standard
    top = BASE - s.horn_top + s.ear_bottom
    x, y = (s.shaft_offset - s.ear_length + 2, 30.0), (-25.0, 25.0)
    wall = d.wall
    house = box(x, y, (0, top)) - box((x[0] + wall, x[1] - wall), (y[0] + wall, y[1] - wall), (-1, top - d.plate))
    foot = hull(cylinder("z", 9, 0, 5, (a, b)) for a in (-50, 36) for b in (-33, 33))
    foot -= box((x[0] + wall, x[1] - wall), (y[0] + wall, y[1] - wall), (-1, 6))
    for a in (-50, 36):
        for b in (-33, 33):
            foot -= cylinder("z", 2.6, -1, 6, (a, b))
    cables = box((x[0] - 1, x[0] + wall + 1), (-12, 12), (6, 20))
    return union([house, foot]) - _pocket(d, 0) - cables


def turret(d: Dimensions) -> Solid:
    """Return link 1: a disc on servo 1's horn and a wall that servo 2 is screwed to."""
    s = d.standard
    ears = s.horn_top - SIDE - s.ear_bottom  # y of the ears' underside
    disc = cylinder("z", 20, 0, 5)
    back, front = s.shaft_offset - s.ear_length + 4.0, s.shaft_offset + 11.0
    low, high = SHOULDER - s.width / 2 - 5, SHOULDER + s.width / 2 + 5
    wall = box((back, front), (ears, ears + d.plate), (0, high))
    floor = box((back, front), (ears, 12), (0, 5))
    tray = box((s.shaft_offset - s.length, s.shaft_offset), (ears, 11), (0, low + 4.7))
    hollow = box((s.shaft_offset - s.length + 4, -13), (ears + 6, 12), (5, low + 2))
    body = union([disc, wall, floor, tray - hollow]) - _pocket(d, 1)
    return body - horn_holes(s, d.screw, -1, 30)


def upper_arm(d: Dimensions) -> Solid:
    """Return link 2: a plate with two ribs from servo 2's horn to servo 3."""
    s = d.standard
    plate = box((0, UPPER_ARM + 19), (-15, 15), (-SIDE - d.plate, -SIDE))
    head = cylinder("z", 15, -SIDE - d.plate, -SIDE)
    ribs = union(
        box((-4, UPPER_ARM + 19), (a, a + d.wall), (-SIDE - d.plate - 8, -SIDE)) for a in (-15.0, 15.0 - d.wall)
    )
    body = union([plate, head, ribs]) - _pocket(d, 2)
    return body - horn_holes(s, d.screw, -SIDE - d.plate - 9, -SIDE + 1)


def forearm_bracket(d: Dimensions) -> Solid:
    """Return link 3: a cheek on servo 3's horn and a wall across the forearm that servo 4 is screwed to."""
    s = d.standard
    ears = FOREARM_SERVO + s.ear_bottom
    cheek = box((-14, 41), (-ears, 14), (ELBOW_SIDE - d.plate, ELBOW_SIDE))
    cheek = hull([cheek ^ box((-14, 20), (-ears, 14), (-50, 50)), cheek ^ box((-14, 41), (-ears, -4), (-50, 50))])
    wall = box((-20, 41), (-ears, -ears + d.plate), (-13, ELBOW_SIDE))
    gusset = hull(
        [box((-20, -17), (-ears, -ears + 6), (-13, ELBOW_SIDE)), box((-20, -14), (-ears, 2), (12, ELBOW_SIDE))]
    )
    body = union([cheek, wall, gusset]) - _pocket(d, 3)
    return body - horn_holes(s, d.screw, 0, ELBOW_SIDE + 1)


def forearm(d: Dimensions) -> Solid:
    """Return link 4: a flange on servo 4's horn, an open channel, and a tongue for servo 5."""
    s, m = d.standard, d.micro
    start = FOREARM_SERVO + s.horn_top
    ears = WRIST_HORN - m.horn_top + m.ear_bottom  # y of the ears' underside
    flange = cylinder("z", 13, start, start + d.plate)
    end = FOREARM - m.length + m.shaft_offset - 5.0
    channel = box((-10, 10), (-12, 12), (start, end)) - box((-7, 11), (-9, 9), (start + d.plate, end - 11))
    tongue = box((-9, 9), (ears - d.plate, ears), (end - 4, FOREARM + 12.5))
    body = union([flange, channel, tongue]) - _pocket(d, 4)
    # A long screwdriver reaches the flange's screws through the block.
    body -= horn_holes(s, d.screw, start - 1, start + d.plate + 1)
    return body - horn_holes(s, 4.6, end - 12, end + 0.1)
