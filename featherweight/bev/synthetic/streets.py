"""The ground of one drive: a curved road with side streets, walkways, crossings and parking, as polygons in metres."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MARGIN_M = 70.0
"""How far the world goes on before the first and behind the last place of the car: farther than a grid reaches."""


@dataclass(frozen=True)
class Path:
    """The middle of a road: points every metre, by distance s from its start; lateral places count to the left."""

    points: np.ndarray
    """(n, 2) m."""
    headings: np.ndarray
    """(n,) radians."""

    @property
    def length(self) -> float:
        """Metres."""
        return float(len(self.points) - 1)

    def place(self, s: float, lateral: float = 0.0) -> tuple[float, float, float]:
        """Return (x, y, heading) at a distance along the path and beside it."""
        along, inside = np.arange(len(self.points)), min(max(s, 0.0), self.length)
        heading = float(np.interp(inside, along, self.headings))
        beyond = s - inside  # the road goes straight on at both ends
        x = np.interp(inside, along, self.points[:, 0]) + beyond * math.cos(heading)
        y = np.interp(inside, along, self.points[:, 1]) + beyond * math.sin(heading)
        return float(x - lateral * math.sin(heading)), float(y + lateral * math.cos(heading)), heading


@dataclass(frozen=True)
class Junction:
    """Where a side street leaves the road."""

    s: float
    sides: tuple[int, ...]
    """+1 for a street to the left, -1 to the right."""
    angle: float
    """Of the street against the road, radians; a right angle is pi / 2."""
    half_width: float


@dataclass(frozen=True)
class Streets:
    """All that is painted on the ground."""

    path: Path
    half_width: float
    walkway_width: float
    junctions: tuple[Junction, ...]
    layers: dict[str, list[Any]]
    """Name of a class -> shapely polygons."""
    paint: list[Any]
    """White stripes: lane marks and crossings; pictures show them, labels do not."""

    @property
    def lane(self) -> float:
        """Lateral place of the middle of the outer lane, m."""
        return self.half_width / 2


def lay_streets(random: np.random.Generator, origin: tuple[float, float], driven_m: float) -> Streets:
    """Return the ground of one drive.

    Args:
        random: numbers that decide everything.
        origin: where the road begins, m.
        driven_m: length of the drive; the road goes on for `MARGIN_M` on both sides.
    """
    from shapely import LineString, Point, unary_union

    path = _winding_path(random, origin, driven_m + 2 * MARGIN_M)
    half_width = float(random.uniform(3.6, 6.5))
    junctions = tuple(_junctions(random, path))
    walkway_width = float(random.uniform(1.5, 3.5))
    side_lines = [
        (LineString(_side_street(path, junction, side)), junction) for junction in junctions for side in junction.sides
    ]
    roads = [LineString(path.points).buffer(half_width, cap_style="flat")]
    roads += [line.buffer(junction.half_width, cap_style="flat") for line, junction in side_lines]
    drivable = unary_union(roads)
    # Islands that part the lanes of side streets are holes of the road.
    islands = [line.interpolate(half_width + 9).buffer(1.0) for line, junction in side_lines if random.uniform() < 0.5]
    islands += [Point(path.place(2.0)[:2]).buffer(0.8)]
    carparks = [
        shape for shape in _carparks(random, path, half_width + walkway_width) if not shape.intersects(drivable)
    ]
    walkways = drivable.buffer(walkway_width, join_style="mitre").difference(drivable)
    walkways = unary_union([walkways, *islands])
    drivable = drivable.difference(unary_union(islands))
    crossings = list(_crossings(random, path, half_width, junctions))
    layers = {
        "drivable_area": _polygons(drivable),
        "ped_crossing": [shape for shape, _ in crossings],
        "walkway": _polygons(walkways.difference(unary_union(carparks)) if carparks else walkways),
        "carpark_area": carparks,
    }
    paint = [stripe for _, stripes in crossings for stripe in stripes]
    paint += list(_lane_marks(path, half_width, junctions))
    return Streets(path, half_width, walkway_width, junctions, layers, paint)


def rectangle(x: float, y: float, heading: float, length: float, width: float) -> Any:
    """Return a shapely rectangle around a place; its length runs along the heading."""
    from shapely import Polygon

    along = np.array([math.cos(heading), math.sin(heading)]) * length / 2
    across = np.array([-math.sin(heading), math.cos(heading)]) * width / 2
    middle = np.array([x, y])
    return Polygon([middle + along + across, middle + along - across, middle - along - across, middle - along + across])


def _polygons(shape: Any) -> list[Any]:
    return [part for part in getattr(shape, "geoms", [shape]) if part.geom_type == "Polygon" and part.area > 0.5]


def _winding_path(random: np.random.Generator, origin: tuple[float, float], length: float) -> Path:
    count = math.ceil(length) + 1
    # Bends of 60 m and more, each held for 40 to 90 m; every third stretch is straight.
    curvature = np.zeros(count)
    start = 0
    while start < count:
        stretch = int(random.uniform(40, 90))
        bend = 0.0 if random.uniform() < 0.35 else random.uniform(-1, 1) / 60
        curvature[start : start + stretch] = bend
        start += stretch
    smooth = np.convolve(np.pad(curvature, 7, mode="edge"), np.ones(15) / 15, mode="valid")
    headings = random.uniform(-math.pi, math.pi) + np.concatenate([[0], np.cumsum(smooth)[:-1]])
    steps = np.column_stack([np.cos(headings), np.sin(headings)])
    points = np.array(origin) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps[:-1], axis=0)])
    return Path(points, headings)


def _junctions(random: np.random.Generator, path: Path) -> Iterator[Junction]:
    s = float(random.uniform(20, 60))
    while s < path.length - 20:
        sides = ((1, -1), (1,), (-1,))[int(random.integers(3))]
        yield Junction(s, sides, float(random.uniform(1.3, 1.84)), float(random.uniform(3.0, 4.5)))
        s += float(random.uniform(45, 85))


def _side_street(path: Path, junction: Junction, side: int) -> list[tuple[float, float]]:
    x, y, heading = path.place(junction.s)
    direction = heading + side * junction.angle
    return [(x, y), (x + 60 * math.cos(direction), y + 60 * math.sin(direction))]


def _crossings(
    random: np.random.Generator, path: Path, half_width: float, junctions: tuple[Junction, ...]
) -> Iterator[tuple[Any, list[Any]]]:
    for junction in junctions:
        for direction in (-1, 1):
            if random.uniform() < 0.8:
                s = junction.s + direction * (junction.half_width + 4)
                if 5 < s < path.length - 5:
                    yield _crossing(*path.place(s), half_width)
        for side in junction.sides:
            if random.uniform() < 0.7:
                (x0, y0), (x1, y1) = _side_street(path, junction, side)
                share = (half_width + 3.5) / 60
                street = math.atan2(y1 - y0, x1 - x0)
                yield _crossing(x0 + share * (x1 - x0), y0 + share * (y1 - y0), street, junction.half_width)


def _crossing(x: float, y: float, heading: float, half_width: float) -> tuple[Any, list[Any]]:
    """Return a crossing of a street and its stripes, which lie along the street."""
    count = round(2 * half_width / 1.1)
    laterals = (np.arange(count) + 0.5) * 2 * half_width / count - half_width
    stripes = [
        rectangle(x - lateral * math.sin(heading), y + lateral * math.cos(heading), heading, 2.8, 0.5)
        for lateral in laterals
    ]
    return rectangle(x, y, heading, 3.0, 2 * half_width), stripes


def _carparks(random: np.random.Generator, path: Path, clear: float) -> Iterator[Any]:
    for s in np.arange(15.0, path.length - 15, 30.0):
        side = 1 if random.uniform() < 0.5 else -1
        if random.uniform() < 0.4:
            depth = float(random.uniform(5.5, 10))
            yield rectangle(*path.place(float(s), side * (clear + depth / 2 + 0.3)), random.uniform(12, 22), depth)


def _lane_marks(path: Path, half_width: float, junctions: tuple[Junction, ...]) -> Iterator[Any]:
    for s in np.arange(2.0, path.length - 3, 6.0):
        if all(abs(s - junction.s) > junction.half_width + 7 for junction in junctions):
            yield rectangle(*path.place(float(s)), 3.0, 0.18)
            for side in (-1, 1):
                yield rectangle(*path.place(float(s), side * (half_width - 0.3)), 6.2, 0.14)
