"""Who is on the ground of one drive: moving and parked objects with sizes and categories, houses and trees."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featherweight.bev.synthetic.streets import MARGIN_M, Junction, Streets, rectangle

SIZES = {
    "vehicle.car": (1.95, 4.62, 1.73),
    "vehicle.truck": (2.51, 6.93, 2.84),
    "vehicle.bus.rigid": (2.94, 11.2, 3.47),
    "vehicle.trailer": (2.90, 12.3, 3.87),
    "vehicle.construction": (2.73, 6.37, 3.19),
    "human.pedestrian.adult": (0.67, 0.73, 1.77),
    "human.pedestrian.child": (0.52, 0.55, 1.30),
    "vehicle.motorcycle": (0.77, 2.11, 1.47),
    "vehicle.bicycle": (0.60, 1.70, 1.28),
    "movable_object.trafficcone": (0.41, 0.41, 1.07),
    "movable_object.barrier": (2.53, 0.50, 0.98),
    "animal": (0.35, 0.75, 0.55),
    "human.pedestrian.stroller": (0.60, 0.95, 1.05),
    "movable_object.debris": (0.70, 0.90, 0.45),
}
"""Mean width, length and height in m by category; the last three have no class and hide their cells."""

SCENERY = ("building", "crown", "trunk")
"""What stands around without being annotated."""


@dataclass(frozen=True)
class Thing:
    """A box that stands on the ground or above it, and how it moves: along the road, or not at all."""

    category: str
    size: tuple[float, float, float]
    """Width, length, height in m."""
    color: tuple[float, float, float]
    """RGB from 0 to 1."""
    place: tuple[float, float, float]
    """(x, y, heading) if it stands, else (s, lateral, heading against the road's)."""
    speed: float | None = None
    """m/s along the road; None: it stands at a fixed place."""
    lateral_speed: float = 0.0
    bottom: float = 0.0
    """Height of its underside, m."""

    @property
    def is_annotated(self) -> bool:
        """Whether it belongs into the annotations."""
        return self.category not in SCENERY

    def at(self, streets: Streets, seconds: float) -> tuple[float, float, float]:
        """Return (x, y, heading) at a time of the drive."""
        if self.speed is None:
            return self.place
        s, lateral, turned = self.place
        x, y, heading = streets.path.place(s + self.speed * seconds, lateral + self.lateral_speed * seconds)
        return x, y, heading + turned


def populate(random: np.random.Generator, streets: Streets, ego_speed: float, driven_m: float) -> list[Thing]:
    """Return everything that stands or moves on the ground of one drive, the car with the camera aside."""
    things = [*_driving(random, streets, ego_speed, driven_m), *_parked(random, streets), *_walking(random, streets)]
    things += [*_works(random, streets), *_on_side_streets(random, streets)]
    return things + list(_scenery(random, streets))


def _new(random: np.random.Generator, category: str, place: tuple[float, float, float], **how: float) -> Thing:
    spread = random.uniform(0.92, 1.08, size=3)
    width, length, height = (float(side * factor) for side, factor in zip(SIZES[category], spread, strict=True))
    return Thing(category, (width, length, height), _color(random, category), place, **how)


def _color(random: np.random.Generator, category: str) -> tuple[float, float, float]:
    if category == "movable_object.trafficcone":
        return 0.95, 0.42, 0.08
    if category == "movable_object.barrier":
        return 0.85, 0.85, 0.85
    if category == "vehicle.construction":
        return 0.93, 0.73, 0.12
    dark, light = (0.05, 0.95) if category.startswith("vehicle") else (0.15, 0.75)
    red, green, blue = random.uniform(dark, light, size=3)
    return float(red), float(green), float(blue)


def _driving(random: np.random.Generator, streets: Streets, ego_speed: float, driven_m: float) -> Iterator[Thing]:
    kinds = list(SIZES)[:5]
    likely = np.array([0.62, 0.13, 0.09, 0.08, 0.08])
    # The lane of the camera's car, as fast as it, so that nobody ever touches; then the other one.
    s = MARGIN_M + float(random.uniform(22, 45))
    while s < MARGIN_M + driven_m:
        category = kinds[0] if random.uniform() < 0.8 else kinds[int(random.choice(5, p=likely))]
        yield _new(random, category, (s, -streets.lane, 0.0), speed=ego_speed)
        s += float(random.uniform(22, 55))
    speed, s = float(random.uniform(4, 10)), 0.0
    end = streets.path.length + speed * 20
    while s < end:
        category = kinds[int(random.choice(5, p=likely))]
        yield _new(random, category, (s, streets.lane, math.pi), speed=-speed)
        s += float(random.uniform(16, 50))
    for category in ("vehicle.bicycle", "vehicle.motorcycle", "vehicle.bicycle"):
        s = float(random.uniform(MARGIN_M + 8, MARGIN_M + 20 + driven_m))
        yield _new(random, category, (s, -streets.half_width + 0.7, 0.0), speed=float(random.uniform(2, 4)))


def _parked(random: np.random.Generator, streets: Streets) -> Iterator[Thing]:
    for shape in streets.layers["carpark_area"]:
        corners = np.array(shape.exterior.coords)[:4]
        along, across = corners[0] - corners[3], corners[1] - corners[0]
        length = float(np.linalg.norm(along))
        heading = math.atan2(across[1], across[0]) + (math.pi if random.uniform() < 0.5 else 0.0)
        for share in np.arange(1.6, length - 1.2, 2.9) / length:
            if random.uniform() < 0.6:
                x, y = corners[3] + share * along + across / 2
                yield _new(random, "vehicle.car", (float(x), float(y), heading))
    if streets.half_width < 5.2:
        return
    for side in (-1, 1):
        for s in np.arange(5.0, streets.path.length - 5, 6.5):
            is_clear = all(abs(s - one.s) > one.half_width + 9 for one in streets.junctions)
            if is_clear and random.uniform() < 0.3:
                place = streets.path.place(float(s), side * (streets.half_width - 1.05))
                yield _new(random, "vehicle.car", place)


def _walking(random: np.random.Generator, streets: Streets) -> Iterator[Thing]:
    beside = streets.half_width + streets.walkway_width / 2
    names = ("human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.stroller", "animal")
    for _ in range(int(streets.path.length / 9)):
        category = names[int(random.choice(4, p=[0.72, 0.16, 0.06, 0.06]))]
        side, direction = (1 if random.uniform() < 0.5 else -1), (1 if random.uniform() < 0.5 else -1)
        place = (float(random.uniform(0, streets.path.length)), side * beside, 0.0 if direction > 0 else math.pi)
        yield _new(random, category, place, speed=direction * float(random.uniform(0.0, 1.6)))
    for junction in streets.junctions:
        if random.uniform() < 0.6:
            s = junction.s + junction.half_width + 4
            yield _new(
                random,
                names[0],
                (s, streets.half_width + 1, -math.pi / 2),
                speed=0.0,
                lateral_speed=-float(random.uniform(0.3, 1.0)),
            )


def _works(random: np.random.Generator, streets: Streets) -> Iterator[Thing]:
    for s in np.arange(25.0, streets.path.length - 20, 55.0):
        if random.uniform() < 0.5:
            continue
        side = 1 if random.uniform() < 0.5 else -1
        edge = side * (streets.half_width - 0.6)
        category = "movable_object.barrier" if random.uniform() < 0.5 else "movable_object.trafficcone"
        for number in range(int(random.integers(3, 7))):
            x, y, heading = streets.path.place(float(s) + 2.8 * number, edge)
            yield _new(random, category, (x, y, heading + (math.pi / 2 if category.endswith("barrier") else 0.0)))
        if random.uniform() < 0.3:
            yield _new(random, "movable_object.debris", streets.path.place(float(s) - 3, edge))


def _on_side_streets(random: np.random.Generator, streets: Streets) -> Iterator[Thing]:
    for junction in streets.junctions:
        for side in junction.sides:
            if random.uniform() < 0.7:
                category = ("vehicle.car", "vehicle.truck", "vehicle.bus.rigid")[
                    int(random.choice(3, p=[0.6, 0.2, 0.2]))
                ]
                yield _new(random, category, _waiting_place(streets, junction, side, float(random.uniform(16, 40))))


def _waiting_place(streets: Streets, junction: Junction, side: int, away: float) -> tuple[float, float, float]:
    x, y, heading = streets.path.place(junction.s)
    direction = heading + side * junction.angle
    lateral = junction.half_width / 2
    away += streets.half_width
    return (
        x + away * math.cos(direction) - lateral * math.sin(direction),
        y + away * math.sin(direction) + lateral * math.cos(direction),
        direction + math.pi,
    )


def _scenery(random: np.random.Generator, streets: Streets) -> Iterator[Thing]:
    from shapely import STRtree

    ground: Sequence[Any] = [shape for layer in streets.layers.values() for shape in layer]
    tree = STRtree(ground)

    def is_free(shape: Any) -> bool:
        return not len(tree.query(shape, predicate="intersects"))

    clear = streets.half_width + streets.walkway_width
    for side in (-1, 1):
        s = 0.0
        while s < streets.path.length:
            length, depth = float(random.uniform(8, 20)), float(random.uniform(7, 14))
            gray = float(random.uniform(0.35, 0.8))
            tint = random.uniform(-0.12, 0.12, size=3)
            x, y, heading = streets.path.place(s, side * (clear + float(random.uniform(1.5, 6)) + depth / 2))
            if random.uniform() < 0.75 and is_free(rectangle(x, y, heading, length, depth)):
                color = (float(gray + tint[0]), float(gray + tint[1]), float(gray + tint[2]))
                yield Thing("building", (depth, length, float(random.uniform(4, 13))), color, (x, y, heading))
            s += length + float(random.uniform(1, 8))
        for s in np.arange(4.0, streets.path.length, 11.0):
            x, y, heading = streets.path.place(float(s) + float(random.uniform(-2, 2)), side * (clear + 0.8))
            if random.uniform() < 0.45 and is_free(rectangle(x, y, heading, 0.5, 0.5)):
                yield Thing("trunk", (0.35, 0.35, 2.6), (0.32, 0.22, 0.14), (x, y, heading))
                crown = float(random.uniform(1.8, 3.2))
                green = (0.12, float(random.uniform(0.3, 0.5)), 0.1)
                yield Thing("crown", (crown, crown, crown), green, (x, y, heading), bottom=2.4)
