"""Pictures and laser scans of a drawn world: rays against flat ground and boxes, the nearest hit wins.

The ground is looked up in an atlas of classes and paint; a box is tested only inside of its image rectangle. Depths are
measured along the optical axis, so that a ray's parameter is its depth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featherweight.bev.geometry import inverse_pose, planar_pose, project, transform
from featherweight.bev.raster import fill_exact
from featherweight.bev.synthetic.streets import MARGIN_M, Streets
from featherweight.bev.synthetic.traffic import Thing

ATLAS_CELL_M = 0.1
FAR_M = 220.0
"""Beyond this the ground is haze."""
GROUND, SKY = -1, -2
"""Numbers of what a ray hits where it hits no box."""
_SUN = np.array([0.35, 0.5, 0.79])
_COLORS = np.array([[0.36, 0.46, 0.24], [0.30, 0.30, 0.32], [0.33, 0.33, 0.35], [0.58, 0.55, 0.52], [0.42, 0.36, 0.40]])
"""Of grass, road, crossing, walkway and parking."""
_LAYERS = ("drivable_area", "carpark_area", "walkway", "ped_crossing")
_KINDS = {"drivable_area": 1, "ped_crossing": 2, "walkway": 3, "carpark_area": 4}
_HAZE = np.array([0.72, 0.78, 0.86])


class Atlas:
    """Class and paint of the ground around a drive, in cells of 0.1 m."""

    def __init__(self, streets: Streets) -> None:
        low = streets.path.points.min(axis=0) - MARGIN_M
        high = streets.path.points.max(axis=0) + MARGIN_M
        self.origin = low
        columns, rows = np.ceil((high - low) / ATLAS_CELL_M).astype(int)
        self.kinds = np.zeros((rows, columns), np.uint8)
        self.paint = np.zeros((rows, columns), bool)
        for layer in _LAYERS:
            for shape in streets.layers[layer]:
                self._fill(self.kinds, shape, _KINDS[layer])
        for shape in streets.paint:
            self._fill(self.paint, shape, True)

    def _fill(self, canvas: np.ndarray, shape: object, value: int) -> None:
        rings = [
            (np.array(ring.coords) - self.origin) / ATLAS_CELL_M - 0.5
            for ring in (shape.exterior, *shape.interiors)  # type: ignore[attr-defined]
        ]
        first = np.clip(np.floor(rings[0].min(axis=0)).astype(int), 0, canvas.shape[::-1])
        last = np.clip(np.ceil(rings[0].max(axis=0)).astype(int) + 1, 0, canvas.shape[::-1])
        part = canvas[first[1] : last[1], first[0] : last[0]]
        part[fill_exact(part.shape, [ring - first for ring in rings])] = value

    def look_up(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return kind and paint under (n, 2) world points; grass outside."""
        column, row = np.floor((points - self.origin) / ATLAS_CELL_M).astype(np.int64).T
        inside = (column >= 0) & (row >= 0) & (column < self.kinds.shape[1]) & (row < self.kinds.shape[0])
        column, row = np.where(inside, column, 0), np.where(inside, row, 0)
        return np.where(inside, self.kinds[row, column], 0), inside & self.paint[row, column]


@dataclass(frozen=True)
class Shot:
    """What a camera sees."""

    image: np.ndarray
    """(height, width, 3) uint8."""
    kinds: np.ndarray
    """(height, width): kind of ground that a pixel shows; 255 where it shows none."""
    depth: np.ndarray
    """(height, width) m along the optical axis; infinite in the sky."""
    hits: np.ndarray
    """(height, width): number of the thing, `GROUND` or `SKY`."""
    visible: np.ndarray
    """(things,) share of each thing's pixels that nothing hides; 0 if it is not in the picture."""


def shoot(
    atlas: Atlas,
    things: Sequence[Thing],
    places: np.ndarray,
    camera_to_world: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
) -> Shot:
    """Take a picture.

    Args:
        atlas: the ground.
        things: what stands on it.
        places: (things, 3) x, y, heading of each now.
        camera_to_world: 4 x 4.
        intrinsics: 3 x 3.
        size: (width, height) in pixels.
    """
    width, height = size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T @ camera_to_world[:3, :3].T
    origin = camera_to_world[:3, 3]
    depth = _ground_depth(origin, rays)
    hits = np.where(np.isfinite(depth), GROUND, SKY)
    faces = np.zeros((height, width), np.int8)
    covered = np.zeros(len(things))
    world_to_camera = inverse_pose(camera_to_world)
    for number, (thing, place) in enumerate(zip(things, places, strict=True)):
        window = _image_window(thing, place, world_to_camera, intrinsics, size)
        if window is None:
            continue
        entry, face = _enter_box(thing, place, origin, rays[window])
        covered[number] = np.isfinite(entry).sum()
        nearer = entry < depth[window]
        depth[window][nearer], faces[window][nearer] = entry[nearer], face[nearer]
        hits[window][nearer] = number
    won = np.bincount(hits[hits >= 0], minlength=len(things))
    visible = np.divide(won, covered, out=np.zeros(len(things)), where=covered > 0)
    points = origin + rays * np.where(np.isfinite(depth), depth, 0)[..., None]
    kinds = np.full((height, width), 255, np.uint8)
    on_ground = hits == GROUND
    kinds[on_ground], paint = atlas.look_up(points[on_ground][:, :2])
    colors = _sky(rays)
    colors[on_ground] = _ground_colors(points[on_ground][:, :2], kinds[on_ground], paint)
    on_box = hits >= 0
    if on_box.any():
        colors[on_box] = _box_colors(things, places, hits[on_box], faces[on_box], points[on_box])
    haze = 1 - np.exp(-np.where(np.isfinite(depth), depth, 0) / 160)[..., None]
    colors = np.where(np.isfinite(depth)[..., None], colors * (1 - haze) + _HAZE * haze, colors)
    image = (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Shot(image, kinds, depth, hits, visible)


def scan(
    things: Sequence[Thing], places: np.ndarray, lidar_to_world: np.ndarray, beams: int = 32, azimuths: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Return the (n, 5) float32 points of a turning laser (x, y, z, intensity, beam) and what each one hit."""
    elevation = np.deg2rad(np.linspace(-30, 10, beams))
    azimuth = np.arange(azimuths) * 2 * math.pi / azimuths
    across, up = np.meshgrid(azimuth, elevation)
    local = np.stack([np.cos(up) * np.cos(across), np.cos(up) * np.sin(across), np.sin(up)], axis=-1).reshape(-1, 3)
    rays = local @ lidar_to_world[:3, :3].T
    origin = lidar_to_world[:3, 3]
    depth = _ground_depth(origin, rays, 100.0)
    hits = np.where(np.isfinite(depth), GROUND, SKY)
    bearing = np.arctan2(rays[:, 1], rays[:, 0])
    for number, (thing, place) in enumerate(zip(things, places, strict=True)):
        offset = np.asarray(place[:2]) - origin[:2]
        distance, reach = float(np.linalg.norm(offset)), math.hypot(*thing.size[:2]) / 2
        if distance > 100:
            continue
        turned = (bearing - math.atan2(offset[1], offset[0]) + math.pi) % (2 * math.pi) - math.pi
        spread = math.pi if distance <= reach else math.asin(reach / distance)
        window = np.flatnonzero(np.abs(turned) <= spread)
        entry, _ = _enter_box(thing, place, origin, rays[window])
        nearer = entry < depth[window]
        depth[window[nearer]], hits[window[nearer]] = entry[nearer], number
    returned = np.isfinite(depth) & (depth < 100)
    points = local[returned] * depth[returned, None]
    beam = np.repeat(np.arange(beams), azimuths)[returned]
    return np.column_stack([points, np.full(len(points), 20.0), beam]).astype(np.float32), hits[returned]


def _ground_depth(origin: np.ndarray, rays: np.ndarray, farthest: float = FAR_M) -> np.ndarray:
    down = rays[..., 2] < -1e-6
    depth = np.where(down, -origin[2] / np.where(down, rays[..., 2], -1), np.inf)
    return np.where(depth < farthest, depth, np.inf)


def _image_window(
    thing: Thing, place: np.ndarray, world_to_camera: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]
) -> tuple[slice, slice] | None:
    """Return rows and columns of the picture in which a box can be seen; None: it cannot."""
    width, length, height = thing.size
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (0, 1)])
    local = signs * np.array([length / 2, width / 2, height]) + np.array([0, 0, thing.bottom])
    corners = transform(world_to_camera @ planar_pose(*place), local)
    if corners[:, 2].max() <= 0.1 or corners[:, 2].min() > FAR_M:
        return None
    if corners[:, 2].min() <= 0.1:
        return slice(0, size[1]), slice(0, size[0])
    image = project(corners, intrinsics)
    (left, top), (right, bottom) = np.floor(image.min(axis=0)), np.ceil(image.max(axis=0))
    left, right = max(left, 0), min(right, size[0])
    top, bottom = max(top, 0), min(bottom, size[1])
    return (slice(int(top), int(bottom)), slice(int(left), int(right))) if left < right and top < bottom else None


def _enter_box(thing: Thing, place: np.ndarray, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth at which rays enter a box (infinite: they miss it) and the axis of the face, 0 to 2."""
    to_box = inverse_pose(planar_pose(*place))
    start, direction = transform(to_box, origin), rays @ to_box[:3, :3].T
    width, length, height = thing.size
    low = np.array([-length / 2, -width / 2, thing.bottom])
    high = np.array([length / 2, width / 2, thing.bottom + height])
    direction = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    first, second = (low - start) / direction, (high - start) / direction
    near, far = np.minimum(first, second), np.maximum(first, second)
    entry, leave = near.max(axis=-1), far.min(axis=-1)
    return np.where((entry <= leave) & (entry > 0.05), entry, np.inf), near.argmax(axis=-1).astype(np.int8)


def _noise(points: np.ndarray, cell_m: float) -> np.ndarray:
    """Return numbers from 0 to 1 that belong to places: the same for every picture of one spot."""
    cells = np.floor(points / cell_m).astype(np.int64)
    mixed = cells[:, 0] * 73856093 ^ cells[:, 1] * 19349663 ^ (cells[:, -1] * 83492791 if cells.shape[1] > 2 else 0)
    return ((mixed * 2654435761) >> 7 & 1023) / 1023


def _ground_colors(points: np.ndarray, kinds: np.ndarray, paint: np.ndarray) -> np.ndarray:
    texture = 0.86 + 0.16 * _noise(points, 0.15) + 0.12 * _noise(points, 1.7)
    colors = _COLORS[kinds] * texture[:, None]
    # Slabs of the walkway, so that it is not only a colour.
    seams = (kinds == 3) & ((points % 0.9 < 0.07).any(axis=1))
    colors[seams] *= 0.75
    colors[paint] = 0.88
    return colors


def _box_colors(
    things: Sequence[Thing], places: np.ndarray, hits: np.ndarray, faces: np.ndarray, points: np.ndarray
) -> np.ndarray:
    colors = np.array([thing.color for thing in things])[hits]
    heading = places[hits, 2] + np.where(faces == 1, math.pi / 2, 0.0)
    facing = np.abs(np.cos(heading) * _SUN[0] + np.sin(heading) * _SUN[1])
    colors = colors * np.where(faces == 2, 1.0, 0.55 + 0.4 * facing)[:, None]
    colors = colors * (0.9 + 0.2 * _noise(points, 0.4))[:, None]
    categories = np.array([thing.category for thing in things])[hits]
    tall = np.array([thing.size[2] for thing in things])[hits]
    # Windows: rows of dark panes on houses, a dark band on vehicles.
    along = points[:, 0] * np.cos(heading) + points[:, 1] * np.sin(heading)
    panes = (categories == "building") & (faces != 2) & (along % 2.4 > 0.9) & (points[:, 2] % 3.0 > 1.2)
    is_vehicle = np.char.startswith(categories, "vehicle.") & (tall > 1.5)
    glass = is_vehicle & (faces != 2) & (points[:, 2] > 0.55 * tall) & (points[:, 2] < 0.88 * tall)
    colors[panes | glass] *= 0.35
    return colors


def _sky(rays: np.ndarray) -> np.ndarray:
    up = np.clip(rays[..., 2] / np.linalg.norm(rays, axis=-1), 0, 1)[..., None]
    return _HAZE * (1 - up) + np.array([0.35, 0.55, 0.86]) * up
