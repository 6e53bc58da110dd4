"""Labels of the ground: which classes each cell of a grid holds, and which cells the camera could not see.

Two modes that must never be mixed: "exact" (a cell has the classes whose polygons hold its anchor) and "pon" (bit for
bit the published labels: rounded vertices, boundaries included, a fill for convex polygons). Rounding inflates a
pedestrian by 1.8; a model that is perfect in one mode scores 50 % on them in the other.
Source of "pon": the label scripts of Roddick and Cipolla, arXiv 2003.13402.
"""

from collections.abc import Iterator

import numpy as np

from featherweight.bev.data.frames import Boxes, Frame, Source
from featherweight.bev.data.layers import LabelMode, footprint, to_cells, to_corners
from featherweight.bev.geometry import ground_matrix, in_view
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.raster import fill_convex, fill_exact


def make_labels(
    source: Source, frame: Frame, grid: BEVGridConfig, mode: LabelMode = "exact", *, lidar_mask: bool = True
) -> np.ndarray:
    """Return the labels around one frame.

    Args:
        source: data set of the frame.
        frame: camera and moment.
        grid: which cells.
        mode: how polygons fill cells.
        lidar_mask: whether cells that no laser beam reached count as unseen.
    Returns:
        (rows, columns) uint16: the sum of 2^k over the classes k of a cell, plus 2^K where it was not seen: outside of
        the field of view, behind the farthest laser point of its direction, or under an object without a class.
    """
    to_world = ground_matrix(frame.camera_to_world, grid.plane)
    bits = np.zeros(grid.shape, np.uint16)
    for name, layer in source.ground(frame).items():
        bits |= layer.mask(grid, to_world, mode).astype(np.uint16) << source.classes.names.index(name)
    _draw_boxes(bits, source.boxes(frame), grid, to_world, mode)
    hidden = ~in_view(grid, frame.intrinsics, frame.width)
    points = source.lidar_points(frame) if lidar_mask else None
    if points is not None:
        hidden |= occluded(points, grid, spread=2 if mode == "exact" else 0)
    bits |= hidden.astype(np.uint16) << source.classes.ignore_bit
    return bits


def occluded(points: np.ndarray, grid: BEVGridConfig, spread: int = 0) -> np.ndarray:
    """Return which cells lie behind the farthest laser point of their direction, bool (rows, columns).

    Args:
        points: (n, 3) in camera coordinates.
        grid: which cells.
        spread: neighbouring directions that count as well. Directions are as narrow as a cell at the far end, narrower
            than the steps of a turning laser: with 0, as in published labels, those between two steps hide seen cells.
    """
    width = grid.resolution / grid.z_max
    rays = int((grid.x_max - grid.x_min) / width)
    in_front = points[:, 2] > 0
    direction = np.round(points[in_front, 0] / points[in_front, 2] / width - grid.x_min / width)
    inside = (direction > 0) & (direction < rays)
    farthest = np.zeros(rays)
    np.maximum.at(farthest, direction[inside].astype(np.int64), points[in_front, 2][inside])
    if spread:
        padded = np.pad(farthest, spread)
        farthest = np.lib.stride_tricks.sliding_window_view(padded, 2 * spread + 1).max(axis=1)
    ray_HW = np.round(grid.laterals()[None] / grid.depths()[:, None] / width - grid.x_min / width)
    known = (ray_HW > 0) & (ray_HW < rays)
    reach = np.where(known, farthest[np.clip(ray_HW, 0, rays - 1).astype(np.int64)], 0.0)
    return reach < grid.depths()[:, None]


def visibility_masks(source: Source, frame: Frame, grid: BEVGridConfig, mode: LabelMode = "exact") -> np.ndarray:
    """Return which cells hold an object of each visibility and class, bool (4, K, rows, columns); 1 (hidden) first."""
    boxes, classes = source.boxes(frame), len(source.classes.names)
    masks = np.zeros((4, classes, *grid.shape), bool)
    for number, mask in _footprints(boxes, grid, ground_matrix(frame.camera_to_world, grid.plane), mode):
        visibility, kind = boxes.visibility[number], boxes.classes[number]
        if visibility > 0 and kind < classes:
            masks[visibility - 1, kind] |= mask
    return masks


def _draw_boxes(bits: np.ndarray, boxes: Boxes, grid: BEVGridConfig, to_world: np.ndarray, mode: LabelMode) -> None:
    for number, mask in _footprints(boxes, grid, to_world, mode):
        bits |= mask.astype(np.uint16) << np.uint16(boxes.classes[number])


def _footprints(
    boxes: Boxes, grid: BEVGridConfig, to_world: np.ndarray, mode: LabelMode
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield number and cells of every box near the grid."""
    from_world, corners_of_grid = np.linalg.inv(to_world), footprint(grid, to_world)
    reach = np.linalg.norm(boxes.sizes[:, :2], axis=1)[:, None]
    near = (boxes.centers[:, :2] + reach >= corners_of_grid.min(axis=0)) & (
        boxes.centers[:, :2] - reach <= corners_of_grid.max(axis=0)
    )
    chosen = np.flatnonzero(near.all(axis=1))
    for number, corners in zip(chosen.tolist(), boxes.corners(chosen)[:, :4, :2], strict=True):
        if mode == "exact":
            yield number, fill_exact(grid.shape, [to_cells(corners, grid, to_world)])
        else:
            canvas = np.zeros(grid.shape, np.uint8)
            fill_convex(canvas, to_corners(corners @ from_world[:2, :2].T + from_world[:2, 2], grid), 1)
            yield number, canvas.astype(bool)
