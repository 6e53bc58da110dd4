"""Solids of manifold3d by centre and axis; everything in millimetres.

A boolean of two manifold solids is manifold again, so a part made here is watertight by construction; `check` proves it
for files that come from elsewhere.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from featherweight.errors import MissingExtraError
from featherweight.robot.hardware.dimensions import Servo
from featherweight.robot.kinematics.dh import Array

Solid = Any
"""manifold3d.Manifold."""
SEGMENTS = 48
"""Of a circle."""
AXES = {"x": (0.0, 90.0, 0.0), "y": (-90.0, 0.0, 0.0), "z": (0.0, 0.0, 0.0)}
"""Rotations that turn z into an axis."""


def import_manifold() -> Any:
    """Import manifold3d, or say how to install it."""
    try:
        import manifold3d
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=manifold3d is not installed; expected it for printed parts. Run pip install "
            "featherweight[kit]."
        ) from error
    return manifold3d


def box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> Solid:
    """Return a box by its ranges."""
    size = [x[1] - x[0], y[1] - y[0], z[1] - z[0]]
    return import_manifold().Manifold.cube(size).translate([x[0], y[0], z[0]])


def cylinder(axis: str, radius: float, start: float, end: float, center: tuple[float, float] = (0.0, 0.0)) -> Solid:
    """Return a cylinder along an axis, from `start` to `end`, through `center` of the other two axes in their order."""
    solid = import_manifold().Manifold.cylinder(end - start, radius, radius, SEGMENTS).translate([0, 0, start])
    a, b = center
    turned = {"x": (0.0, a, b), "y": (a, 0.0, b), "z": (a, b, 0.0)}[axis]
    return solid.rotate(list(AXES[axis])).translate(list(turned))


def prism(points: Iterable[tuple[float, float]], start: float, end: float) -> Solid:
    """Return a polygon in x and y, drawn from z = start to z = end."""
    section = import_manifold().CrossSection([[list(point) for point in points]])
    return import_manifold().Manifold.extrude(section, end - start).translate([0, 0, start])


def union(solids: Iterable[Solid]) -> Solid:
    """Return the union of solids."""
    manifold = import_manifold()
    return manifold.Manifold.batch_boolean(list(solids), manifold.OpType.Add)


def hull(solids: Iterable[Solid]) -> Solid:
    """Return the convex hull of solids."""
    return import_manifold().Manifold.batch_hull(list(solids))


def placed(solid: Solid, transform: Array) -> Solid:
    """Return a solid under a (4, 4) transform in millimetres."""
    return solid.transform(np.asarray(transform)[:3, :4].tolist())


def rotation(axis: str, angle_deg: float) -> Array:
    """Return a (4, 4) rotation about x, y or z."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    result = np.eye(4)
    result[i, i] = result[j, j] = cos
    result[i, j], result[j, i] = -sin, sin
    return result


def shift(x: float, y: float, z: float) -> Array:
    """Return a (4, 4) translation."""
    result = np.eye(4)
    result[:3, 3] = x, y, z
    return result


def servo_solid(servo: Servo, grow: float = 0.0) -> Solid:
    """Return a servo whose shaft is the z axis, its bottom at z = 0 and its case along -x; `grow` makes a cavity."""
    half = servo.width / 2 + grow
    front = servo.shaft_offset
    over = (servo.ear_length - servo.length) / 2
    case = box((front - servo.length - grow, front + grow), (-half, half), (-grow, servo.height + grow))
    ears = box(
        (front - servo.length - over - grow, front + over + grow),
        (-half, half),
        (servo.ear_bottom - grow, servo.ear_bottom + servo.ear_thickness + grow),
    )
    horn = cylinder("z", servo.horn_radius + grow, servo.height, servo.horn_top)
    return union([case, ears, horn])


def ear_holes(servo: Servo, diameter: float, start: float, end: float) -> Solid:
    """Return the ears' screw holes of a servo as `servo_solid` stands, from z = start to z = end."""
    along, across = servo.ear_screw_spacing
    middle = servo.shaft_offset - servo.length / 2
    rows = (-across / 2, across / 2) if across else (0.0,)
    return union(
        cylinder("z", diameter / 2, start, end, (middle + side * along / 2, row)) for side in (-1, 1) for row in rows
    )


def horn_holes(servo: Servo, diameter: float, start: float, end: float, count: int = 4) -> Solid:
    """Return the hole of the horn's own screw and `count` holes on its screw circle, about z."""
    angles = [2 * math.pi * (i + 0.5) / count for i in range(count)]
    centers = [(servo.screw_circle * math.cos(a), servo.screw_circle * math.sin(a)) for a in angles]
    middle = cylinder("z", min(3.5, servo.screw_circle - diameter / 2 - 0.9), start, end)
    return union([middle, *(cylinder("z", diameter / 2, start, end, center) for center in centers)])


def triangles(solid: Solid) -> tuple[Array, Any]:
    """Return (V, 3) corners and (F, 3) indices of a solid."""
    mesh = solid.to_mesh64()
    return np.asarray(mesh.vert_properties)[:, :3].astype(np.float64), np.asarray(mesh.tri_verts).astype(np.int64)
