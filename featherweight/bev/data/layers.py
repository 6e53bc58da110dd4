"""Layers of maps, as polygons or as pictures of the ground, and how they fill the cells of a grid."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.raster import fill_convex, fill_exact

LabelMode = Literal["exact", "pon"]
"""A cell has what its anchor lies in, or what published labels paint there; see `featherweight.bev.labels`."""


class Layer(ABC):
    """One layer of a map, in world coordinates."""

    @abstractmethod
    def mask(self, grid: BEVGridConfig, to_world: np.ndarray, mode: LabelMode) -> np.ndarray:
        """Return which cells hold the layer, bool (rows, columns).

        Args:
            grid: the cells.
            to_world: 3 x 3 `featherweight.bev.geometry.ground_matrix`.
            mode: how shapes fill cells.
        """


def footprint(grid: BEVGridConfig, to_world: np.ndarray) -> np.ndarray:
    """Return the corners (4, 2) of a grid in the world."""
    corners = [(grid.x_min, grid.z_min), (grid.x_max, grid.z_min), (grid.x_max, grid.z_max), (grid.x_min, grid.z_max)]
    return np.array(corners) @ to_world[:2, :2].T + to_world[:2, 2]


def to_cells(points: np.ndarray, grid: BEVGridConfig, to_world: np.ndarray) -> np.ndarray:
    """Return world points (n, 2) in cells (column, row)."""
    from_world = np.linalg.inv(to_world)
    return grid.index(points @ from_world[:2, :2].T + from_world[:2, 2])


def to_corners(points: np.ndarray, grid: BEVGridConfig) -> np.ndarray:
    """Return ground points (n, 2) in whole cells from the grid's corner, halves to even, as in published labels."""
    return np.round((points[:, :2] - np.array([grid.x_min, grid.z_min])) / grid.resolution).astype(np.int64)


class Polygons(Layer):
    """Polygons of a map: each a list of rings (n, 2) in world coordinates, the exterior first."""

    def __init__(self, polygons: Sequence[Sequence[np.ndarray]]) -> None:
        self.polygons = [list(rings) for rings in polygons]
        exteriors = [rings[0] for rings in self.polygons]
        self._valid: dict[int, list[list[np.ndarray]]] = {}
        self._low = np.array([ring.min(axis=0) for ring in exteriors]).reshape(-1, 2)
        self._high = np.array([ring.max(axis=0) for ring in exteriors]).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.polygons)

    def mask(self, grid: BEVGridConfig, to_world: np.ndarray, mode: LabelMode) -> np.ndarray:
        """Return the cells that hold the layer; see `Layer.mask`."""
        return self._exact(grid, to_world) if mode == "exact" else self._published(grid, to_world)

    def _exact(self, grid: BEVGridConfig, to_world: np.ndarray) -> np.ndarray:
        corners, mask = footprint(grid, to_world), np.zeros(grid.shape, bool)
        for number in self.near(corners.min(axis=0), corners.max(axis=0)):
            for rings in self.valid(number):
                mask |= fill_exact(grid.shape, [to_cells(ring, grid, to_world) for ring in rings])
        return mask

    def _published(self, grid: BEVGridConfig, to_world: np.ndarray) -> np.ndarray:
        import shapely
        from shapely import affinity

        view = shapely.Polygon(footprint(grid, to_world))
        inverse = np.linalg.inv(to_world)
        back = [*inverse[0, :2], *inverse[1, :2], inverse[0, 2], inverse[1, 2]]
        mask = np.zeros(grid.shape, np.uint8)
        tree, shapes = self.tree
        for number in tree.query(view):
            clipped = affinity.affine_transform(shapes[number].intersection(view), back)
            for part in getattr(clipped, "geoms", [clipped]):
                if part.geom_type == "Polygon" and not part.is_empty:
                    for ring, value in ((part.exterior, 1), *((hole, 0) for hole in part.interiors)):
                        fill_convex(mask, to_corners(np.array(ring.coords), grid), value)
        return mask.astype(bool)

    def near(self, low: np.ndarray, high: np.ndarray) -> list[int]:
        """Return numbers of the polygons whose bounding box meets the box from `low` to `high`."""
        meets = (self._low <= high).all(axis=1) & (self._high >= low).all(axis=1)
        return np.flatnonzero(meets).tolist()

    def valid(self, number: int) -> list[list[np.ndarray]]:
        """Return a polygon as one or more valid ones: published maps have some whose outline crosses itself."""
        if number not in self._valid:
            self._valid[number] = _repaired(self.polygons[number])
        return self._valid[number]

    @cached_property
    def tree(self) -> tuple[Any, list[Any]]:
        """A search tree and the shapes in it, without the invalid ones, as published labels are made."""
        import shapely

        shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in self.polygons]
        shapes = [shape for shape in shapes if shape.is_valid and not shape.is_empty]
        return shapely.STRtree(shapes), shapes


def _repaired(rings: list[np.ndarray]) -> list[list[np.ndarray]]:
    import shapely

    shape = shapely.Polygon(rings[0], rings[1:])
    if shape.is_valid:
        return [rings]
    shape = shapely.make_valid(shape)
    parts = getattr(shape, "geoms", [shape])
    return [
        [np.array(ring.coords) for ring in (part.exterior, *part.interiors)]
        for part in parts
        if part.geom_type == "Polygon" and not part.is_empty
    ]


class Raster(Layer):
    """A layer as a picture of the ground: the nearest pixel says what a place holds, in both modes.

    Args:
        values: (rows, columns) bool.
        world_to_pixel: 3 x 3 from (X, Y, 1) to (column, row, 1); pixel centres are whole numbers.
    """

    def __init__(self, values: np.ndarray, world_to_pixel: np.ndarray) -> None:
        self.values, self.world_to_pixel = values.astype(bool), world_to_pixel

    def mask(self, grid: BEVGridConfig, to_world: np.ndarray, mode: LabelMode) -> np.ndarray:
        """Return the cells whose anchor lies on a set pixel."""
        pixels = grid.points() @ to_world.T @ self.world_to_pixel.T
        column, row = np.round(pixels[..., :2]).astype(np.int64).transpose(2, 0, 1)
        inside = (row >= 0) & (column >= 0) & (row < self.values.shape[0]) & (column < self.values.shape[1])
        return inside & self.values[np.where(inside, row, 0), np.where(inside, column, 0)]


GroundMap = Mapping[str, Layer]
"""Every layer of a map, by the name of the class that it draws into."""
