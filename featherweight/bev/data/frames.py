"""One picture of one calibrated camera at one moment, and what is known about the world around it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featherweight.bev.data.classes import ClassList
from featherweight.bev.geometry import pose, transform


@dataclass(frozen=True)
class Frame:
    """A picture with its calibration and pose."""

    index: int
    """Place among the frames of its data set."""
    token: str
    """Name of the frame, unique in its data set."""
    sequence: str
    """Drive that it belongs to."""
    camera: str
    image: Path
    width: int
    """Pixels of the stored picture, for which the intrinsics hold."""
    height: int
    timestamp: float
    """Seconds."""
    intrinsics: np.ndarray
    """3 x 3."""
    camera_to_ego: np.ndarray
    """4 x 4."""
    ego_to_world: np.ndarray
    """4 x 4, of the moment of this picture."""

    @property
    def camera_to_world(self) -> np.ndarray:
        """4 x 4, float64."""
        return self.ego_to_world @ self.camera_to_ego


@dataclass(frozen=True)
class Boxes:
    """Annotated objects of one moment, in world coordinates; n boxes."""

    centers: np.ndarray
    """(n, 3) m."""
    sizes: np.ndarray
    """(n, 3) m: width, length, height."""
    rotations: np.ndarray
    """(n, 4) quaternions (w, x, y, z)."""
    classes: np.ndarray
    """(n,) class numbers; the ignore bit for categories without a class."""
    visibility: np.ndarray
    """(n,) 1 (hidden) to 4 (fully seen), 0 for unknown."""

    def __len__(self) -> int:
        return len(self.centers)

    def corners(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """Return (n, 8, 3) corners of all or the chosen boxes: the bottom four first, around."""
        chosen = np.arange(len(self)) if chosen is None else chosen
        signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
        result = np.empty((len(chosen), 8, 3))
        for row, number in zip(result, chosen, strict=True):
            width, length, height = self.sizes[number]
            flat = signs * np.array([length, width])
            local = np.concatenate([np.column_stack([flat, np.full(4, side * height / 2)]) for side in (-1, 1)])
            row[:] = transform(pose(self.rotations[number], self.centers[number]), local)
        return result


class Polygons:
    """The polygons of one layer of a map: each a list of rings (n, 2) in world coordinates, the exterior first."""

    def __init__(self, polygons: Sequence[Sequence[np.ndarray]]) -> None:
        self.polygons = [list(rings) for rings in polygons]
        exteriors = [rings[0] for rings in self.polygons]
        self._valid: dict[int, list[list[np.ndarray]]] = {}
        self._low = np.array([ring.min(axis=0) for ring in exteriors]).reshape(-1, 2)
        self._high = np.array([ring.max(axis=0) for ring in exteriors]).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.polygons)

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


GroundMap = Mapping[str, Polygons]
"""Polygons of every layer of a map, by the name of the class that it draws into."""


class Source(ABC):
    """A data set: frames in order of drive, camera and time, and what is known of the world around each."""

    classes: ClassList
    frames: Sequence[Frame]

    @abstractmethod
    def ground(self, frame: Frame) -> GroundMap:
        """Return the map around a frame."""

    @abstractmethod
    def boxes(self, frame: Frame) -> Boxes:
        """Return the objects at the moment of a frame."""

    def lidar_points(self, frame: Frame) -> np.ndarray | None:
        """Return (n, 3) laser points in the frame's camera coordinates; None: there are none."""
        return None
