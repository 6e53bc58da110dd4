"""Masses, centres and inertias from solids; static loads against the servos' torque; the reach.

Printed parts count with the density of their material times the assumed share of filling, servos as even blocks of
their stated mass.
"""

from dataclasses import dataclass

import numpy as np

from featherweight.robot.hardware.assembly import BODIES, Assembly
from featherweight.robot.hardware.solids import Solid, triangles
from featherweight.robot.kinematics.dh import TOOL_M, Array, tool_point
from featherweight.robot.kit import ARM_JOINTS

GRAVITY = 9.81


@dataclass(frozen=True)
class MassProperties:
    """Of a rigid body, in SI units and in the frame of the body.

    Attributes:
        mass_kg: total.
        center_m: (3,) centre of mass.
        inertia_kg_m2: (3, 3) about the centre of mass.
    """

    mass_kg: float
    center_m: Array
    inertia_kg_m2: Array


def volume_properties(solid: Solid) -> tuple[float, Array, Array]:
    """Return volume (mm3), (3,) centroid (mm) and (3, 3) second moments about the origin (mm5) of a solid.

    Sums signed tetrahedra from the origin; exact for triangles.
    """
    vertices, faces = triangles(solid)
    corners = vertices[faces]
    volumes = np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    sums = corners.sum(1)
    volume = volumes.sum()
    first = (volumes[:, None] * sums).sum(0) / 4
    second = np.einsum("f,fci,fcj->ij", volumes, corners, corners) + np.einsum("f,fi,fj->ij", volumes, sums, sums)
    return float(volume), first / volume, second / 20


def combine(solids: list[tuple[Solid, float]]) -> MassProperties:
    """Return the properties of (solid in mm, mass in g) pairs in one frame."""
    total, first, second = 0.0, np.zeros(3), np.zeros((3, 3))
    for solid, mass_g in solids:
        volume, centroid, moments = volume_properties(solid)
        total += mass_g / 1e3
        first += mass_g / 1e3 * centroid / 1e3
        second += mass_g / 1e3 * moments / volume / 1e6
    center = first / total
    about = second - total * np.outer(center, center)
    return MassProperties(total, center, np.trace(about) * np.eye(3) - about)


def body_masses(assembly: Assembly) -> list[MassProperties]:
    """Return the properties of every body of `BODIES`, servos included."""
    return [
        combine([(piece.solid, piece.mass_g) for piece in assembly.pieces if piece.body == i])
        for i in range(len(BODIES))
    ]


@dataclass(frozen=True)
class Load:
    """The worst static load of a joint.

    Attributes:
        joint: 1 to 5.
        needed_nm: torque about its axis.
        stall_nm: of its servo.
    """

    joint: int
    needed_nm: float
    stall_nm: float

    @property
    def margin(self) -> float:
        """How many times the torque is there."""
        return self.stall_nm / self.needed_nm if self.needed_nm > 0 else np.inf


def static_loads(assembly: Assembly, payload_kg: float = 0.02) -> list[Load]:
    """Return the worst static load of each joint over the arm stretched out, its wrist bent, and its hand level.

    Args:
        assembly: the arm.
        payload_kg: at the tool point; a cube weighs 8 g.
    """
    masses = body_masses(assembly)
    needed = np.zeros(ARM_JOINTS)
    stretched = [(0, 90, 90, 0, 0), (0, 0, 0, 0, 0), (0, 0, 0, 90, 90), (0, 0, 90, 0, 90), (0, 90, 90, 90, 90)]
    for pose in stretched:
        poses = assembly.poses([*pose, 90])
        tool = poses[5] @ np.array([0, -TOOL_M * 1e3, 0, 1])
        weights = [
            (m.mass_kg, (p @ np.array([*(m.center_m * 1e3), 1]))[:3] / 1e3) for m, p in zip(masses, poses, strict=True)
        ]
        for i in range(ARM_JOINTS):
            axis, origin = poses[i + 1][:3, 2], poses[i + 1][:3, 3] / 1e3
            moved = [*weights[i + 1 :], (payload_kg, tool[:3] / 1e3)]
            torque = sum(np.cross(at - origin, [0, 0, -GRAVITY * mass]) for mass, at in moved)
            needed[i] = max(needed[i], abs(float(np.dot(np.asarray(torque), axis))))
    d = assembly.dimensions
    return [Load(i + 1, float(needed[i]), (d.standard if i < 4 else d.micro).torque_nm) for i in range(ARM_JOINTS)]


def workspace(count: int = 20_000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return the ranges that the tool point reaches without touching table or arm, from random postures, in metres.

    Keys: "radius_m" from the axis of joint 1, "height_m" over the table.
    """
    from featherweight.robot.safety.guard import clearance

    generator = np.random.default_rng(seed)
    postures = generator.uniform(-90, 90, (count, ARM_JOINTS))
    points = tool_point(np.radians(postures))
    free = np.array([clearance(list(posture)) >= 0 for posture in postures])
    radius, height = np.hypot(points[free, 0], points[free, 1]), points[free, 2]
    return {
        "radius_m": (float(radius.min()), float(radius.max())),
        "height_m": (float(height.min()), float(height.max())),
    }
