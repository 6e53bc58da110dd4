"""All printed parts of the kit, each as it lies on the bed, and the plates for a printer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featherweight.errors import ConfigError
from featherweight.robot.hardware import master, stand
from featherweight.robot.hardware.assembly import Assembly
from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.solids import Solid

GAP_MM = 5.0
"""Between parts on a plate, and to its edge."""
LYING: dict[str, tuple[float, float, float]] = {
    "base": (180, 0, 0),
    "turret": (0, 0, 0),
    "upper_arm": (180, 0, 0),
    "forearm_bracket": (-90, 0, 0),
    "forearm": (0, -90, 0),
    "palm": (0, 90, 0),
    "gripper_lid": (0, 90, 0),
    "pinion": (0, 90, 0),
    "finger_left": (0, 90, 0),
    "finger_right": (0, 90, 0),
    "master_cube": (180, 0, 0),
    "master_bottom": (0, 0, 0),
    "stand_foot": (0, 0, 0),
    "stand_post": (0, 0, 0),
    "stand_sleeve": (0, 0, 0),
    "stand_tray": (0, 0, 0),
}
"""Rotations in degrees about the fixed axes x, y, z that lay a part on the bed; its lowest point then comes to z =
0."""


@dataclass(frozen=True)
class Part:
    """A printed part, lying on the bed.

    Attributes:
        name: of the part and of its files.
        solid: in mm, lowest point at z = 0, middle of its box at x = y = 0.
        count: how many of them the kit needs.
    """

    name: str
    solid: Solid
    count: int = 1

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Width, depth and height as it lies."""
        x0, y0, z0, x1, y1, z1 = self.solid.bounding_box()
        return x1 - x0, y1 - y0, z1 - z0


def lay(name: str, solid: Solid, turn_deg: tuple[float, float, float] = (0, 0, 0), count: int = 1) -> Part:
    """Turn a solid and put it onto the bed."""
    turned = solid.rotate(list(turn_deg))
    x0, y0, z0, x1, y1, _ = turned.bounding_box()
    return Part(name, turned.translate([-(x0 + x1) / 2, -(y0 + y1) / 2, -z0]), count)


def printed_parts(assembly: Assembly) -> list[Part]:
    """Return every printed part of arm, master and camera stand."""
    d = assembly.dimensions
    extra: list[tuple[str, Callable[[Dimensions], Solid], int]] = [
        ("master_cube", master.cube, 1),
        ("master_bottom", master.bottom, 1),
        ("stand_foot", stand.foot, 1),
        ("stand_post", stand.post, 2),
        ("stand_sleeve", stand.sleeve, 1),
        ("stand_tray", stand.tray, 1),
    ]
    parts = [lay(piece.name, piece.solid, LYING[piece.name]) for piece in assembly.pieces if piece.is_printed]
    return [*parts, *(lay(name, make(d), LYING[name], count) for name, make, count in extra)]


@dataclass(frozen=True)
class Plate:
    """Parts on one bed: (name, solid at its place), in mm from a corner."""

    items: list[tuple[str, Solid]]


def plates(parts: list[Part], dimensions: Dimensions) -> list[Plate]:
    """Pack parts into rows on as few beds as a simple rule gives: tallest footprint first.

    Raises:
        ConfigError: if a part is larger than the bed or taller than the printer.
    """
    bed = dimensions.bed
    copies = [(part, turn) for part in parts for _ in range(part.count) for turn in [part.size_mm[0] < part.size_mm[1]]]
    for part, _ in copies:
        if max(part.size_mm[:2]) > bed - 2 * GAP_MM or part.size_mm[2] > dimensions.print_height:
            raise ConfigError(
                f"robot: part={part.name} of {' x '.join(f'{s:.0f}' for s in part.size_mm)} mm does not fit; expected "
                f"at most {bed - 2 * GAP_MM:.0f} x {bed - 2 * GAP_MM:.0f} x {dimensions.print_height:.0f} mm. Turn it, "
                "or cut it."
            )
    copies.sort(key=lambda copy: -min(copy[0].size_mm[:2]))
    done: list[Plate] = []
    rows: list[list[float]] = []  # of the newest plate: y, height, x that is free
    for part, turn in copies:
        solid = part.solid.rotate([0, 0, 90]) if turn else part.solid
        width, depth = (float(v) for v in np.array(part.size_mm[:2])[[1, 0] if turn else [0, 1]])
        row = next((r for r in rows if depth <= r[1] and r[2] + width <= bed - GAP_MM), None)
        if row is None:
            y = rows[-1][0] + rows[-1][1] + GAP_MM if rows else GAP_MM
            if not done or y + depth > bed - GAP_MM:
                done.append(Plate([]))
                rows, y = [], GAP_MM
            row = [y, depth, GAP_MM]
            rows.append(row)
        done[-1].items.append((part.name, solid.translate([row[2] + width / 2, row[0] + depth / 2, 0])))
        row[2] += width + GAP_MM
    return done
