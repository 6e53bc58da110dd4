"""The geared two-finger gripper: link 5 with servo 6, a pinion, two racks with fingers, and a lid.

In the frame of body 5: -y is the direction of the tool, z the axis of the wrist along which the fingers open, x up at
zero. The pinion's pitch radius is 8 mm, so half a turn of the servo opens the fingers by 50 mm; at -90 degrees they
touch.
"""

import math
from dataclasses import dataclass

from featherweight.robot.hardware.arm import WRIST_HORN
from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.solids import (
    Solid,
    box,
    cylinder,
    ear_holes,
    horn_holes,
    hull,
    placed,
    prism,
    rotation,
    servo_solid,
    shift,
    union,
)
from featherweight.robot.kinematics.dh import TOOL_M, Array

REACH = 40.0
"""Of the pinion's axis from the wrist."""
DECK = 10.0
"""Underside of the deck that servo 6 hangs under."""
GEAR = (15.0, 19.0)
"""Of pinion and racks along x."""
ARM = (22.4, 26.4)
"""Of the fingers' arms, over the lid."""
FINGER_END = TOOL_M * 1e3 + 6.0
FINGER = 4.0
"""Thickness of a finger where it grasps."""


@dataclass(frozen=True)
class Gripper:
    """Solids of a gripper in the frame of body 5.

    Attributes:
        palm: fixed to servo 5's horn; carries servo 6.
        pinion: turns with servo 6 about `pinion_axis`.
        left, right: fingers at closed; left moves along +z, right along -z.
        lid: holds the racks down; part of the palm for the simulator.
        travel_mm_rad: way of a finger for a radian of servo 6.
        servo_pose: of servo 6 in the frame of body 5.
    """

    palm: Solid
    pinion: Solid
    left: Solid
    right: Solid
    lid: Solid
    travel_mm_rad: float
    servo_pose: Array


def front(start: float, end: float) -> tuple[float, float]:
    """Return the y range of a range along the tool's direction."""
    return -end, -start


def rack_teeth(module: float, count: int) -> list[tuple[float, float]]:
    """Return the outline of a rack: teeth of 20 degrees along +x from 0, the pitch line at y = 0, the bar below."""
    pitch, flank = math.pi * module, math.tan(math.radians(20))
    # A little thinner than half a pitch, so that printed teeth do not jam.
    half, top, root = pitch / 4 - 0.1, 0.9 * module, 1.25 * module
    points = [(0.0, -root)]
    for i in range(count):
        middle = (i + 0.5) * pitch
        points += [
            (middle - half - root * flank, -root),
            (middle - half + top * flank, top),
            (middle + half - top * flank, top),
            (middle + half + root * flank, -root),
        ]
    points.append((count * pitch, -root))
    return points


def involute_gear(module: float, teeth: int, thickness: float) -> Solid:
    """Return a spur gear of 20 degrees about z, thinned by 0.2 mm for printing."""
    pitch_radius = module * teeth / 2
    base_radius = pitch_radius * math.cos(math.radians(20))
    top, root = pitch_radius + 0.9 * module, pitch_radius - 1.25 * module
    half_angle = math.pi / (2 * teeth) - 0.1 / pitch_radius

    def spread(radius: float) -> float:
        """Angle by which the involute has turned at a radius."""
        angle = math.acos(min(1.0, base_radius / radius))
        return math.tan(angle) - angle

    radii = [max(root, base_radius) + (top - max(root, base_radius)) * i / 6 for i in range(7)]
    profile = [(radius, half_angle + spread(pitch_radius) - spread(radius)) for radius in radii]
    profile.insert(0, (root, profile[0][1]))
    points = []
    for tooth in range(teeth):
        middle = 2 * math.pi * tooth / teeth
        edge = [(r, middle - a) for r, a in profile] + [(r, middle + a) for r, a in reversed(profile)]
        points += [(r * math.cos(a), r * math.sin(a)) for r, a in edge]
    return prism(points, 0, thickness)


def _rack(d: Dimensions, low: float, high: float) -> Solid:
    """Return a toothed bar along z from `low` to `high` in front of the pinion, its teeth towards -front."""
    count = math.ceil((high - low) / (math.pi * d.gear_module))
    outline = rack_teeth(d.gear_module, count)
    bar = [(outline[-1][0], -6.0), (0.0, -6.0)]
    solid = prism(reversed([*outline, *bar]), 0, GEAR[1] - GEAR[0] + 0.6)
    # Outline x -> z, outline y -> towards the wrist (+y of the body), extrusion -> x; a tooth gap stands at z = 0.
    shifted = solid.translate([low, 0, 0])
    turned = placed(shifted, _axes())
    middle = REACH + d.pinion_radius
    return turned.translate([GEAR[0] - 0.6, -middle, 0]) ^ box((0, 40), (-200, 200), (low, high))


def _axes() -> Array:
    """Rotation that takes (x, y, z) to (z, y, x), mirrored in y to stay right-handed where it matters."""
    result = shift(0, 0, 0)
    result[:3, :3] = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    return result


def _finger(d: Dimensions) -> Solid:
    """Return the left finger, with its rack in front of the pinion; closed."""
    pitch = math.pi * d.gear_module
    # The pinion has a tooth at z = 0 (angle 0), so the rack has a gap there: it starts a whole number of pitches away.
    low = -9 * pitch
    rack = _rack(d, low, 16.0)
    far = REACH + d.pinion_radius + 6.0
    post = box((GEAR[0] - 0.6, ARM[1]), front(far - 4.6, far), (11, 16))
    return union([rack, post, *_blade(far - 4.6)])


def _blade(start: float) -> list[Solid]:
    """Return arm, web and blade of a finger whose post stands at `start` along the tool."""
    arm = box(ARM, front(start, 65), (11, 16))
    web = box(ARM, front(59, 65), (0, 16))
    root = box((-9, ARM[1]), front(59, 70), (0, FINGER))
    tip = box((-9, 9), front(FINGER_END - 2, FINGER_END), (0, FINGER))
    high = box((-9, 9), front(70, FINGER_END), (0, FINGER))
    brace = hull([box((20, ARM[1]), front(59, 65), (0, FINGER)), box((20, ARM[1]), front(59, 61), (0, 10))])
    return [arm, web, hull([root, tip]), high, brace]


def build_gripper(d: Dimensions) -> Gripper:
    """Return the kit's own gripper."""
    m = d.micro
    servo_pose = shift(DECK - m.ear_bottom - m.ear_thickness, -REACH, 0) @ _servo_turn()
    pocket = placed(
        union([servo_solid(m, d.clearance), ear_holes(m, d.screw_small, m.ear_bottom - 2, m.ear_bottom + 12)]),
        servo_pose,
    )
    top = DECK + 3.5
    plate = union(
        [box((-9, 9), front(0, 26), (WRIST_HORN, WRIST_HORN + 3)), cylinder("z", 9, WRIST_HORN, WRIST_HORN + 3)]
    )
    plate -= horn_holes(m, 1.6, WRIST_HORN - 1, WRIST_HORN + 4, count=2)
    deck = box((DECK, top), front(20.8, 58.6), (-24, 24))
    wall = box((-9, top), front(20.8, 26), (-24, WRIST_HORN + 3))
    guide_back = box((top, GEAR[1] + 0.4), front(20.8, 25.6), (-10, 22))
    guide_front = box((top, GEAR[1] + 0.4), front(54.4, 58.6), (-22, 10))
    palm = union([plate, deck, wall, guide_back, guide_front]) - pocket
    holes = union(cylinder("x", d.screw_small / 2, DECK - 2, 30, center) for center in ((-23.2, 0.0), (-56.5, 0.0)))
    shaft = cylinder("x", 5, GEAR[1], ARM[0], (-REACH, 0.0))
    lid = box((GEAR[1] + 0.5, ARM[0] - 0.4), front(20.8, 58.6), (-9.5, 9.5)) - holes - shaft
    # The hub of the pinion sits on the servo's shaft.
    pinion = involute_gear(d.gear_module, d.gear_teeth, GEAR[1] - GEAR[0]) - cylinder("z", 2.45, -1, 10)
    pinion = placed(pinion, shift(GEAR[0], -REACH, 0) @ _servo_turn())
    left = _finger(d)
    # Half a turn about x through the pinion makes the left finger's rack the right one's, behind the pinion; arm and
    # blade have to lead forward again.
    rack = _rack(d, -9 * math.pi * d.gear_module, 16.0)
    turn = shift(0, -REACH, 0) @ rotation("x", 180) @ shift(0, REACH, 0)
    near = REACH - d.pinion_radius - 6.0
    post = box((GEAR[0] - 0.6, ARM[1]), front(near, near + 4.6), (-16, -11))
    blade = union(_blade(near)).mirror([0, 0, 1])
    right = union([placed(rack, turn), post, blade])
    return Gripper(palm - holes, pinion, left, right, lid, d.pinion_radius, servo_pose)


def _servo_turn() -> Array:
    """Shaft (z) along +x, case (-x) along -z: (x, y, z) -> (z, y, x) would mirror, so y turns round, too."""
    result = shift(0, 0, 0)
    result[:3, :3] = [[0, 0, 1], [0, -1, 0], [1, 0, 0]]
    return result
