"""One picture of one calibrated camera at one moment, and what is known about the world around it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featherweight.bev.data.classes import ClassList
from featherweight.bev.data.layers import GroundMap
from featherweight.bev.geometry import pose, transform
from featherweight.bev.grid import BEVGridConfig


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

    @classmethod
    def none(cls) -> "Boxes":
        """Return no boxes."""
        return cls(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 4)), np.zeros(0, np.int8), np.zeros(0, np.int8))

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


class Source(ABC):
    """A data set: frames in order of drive, camera and time, and what is known of the world around each."""

    classes: ClassList
    frames: Sequence[Frame]

    splits: tuple[str, ...]
    """Names of the ways in which its drives may be parted; the first is the default."""

    @property
    def descriptions(self) -> Mapping[str, str]:
        """Sentence about each drive, by name: weather and time of day may stand there; default: nothing is known."""
        return {}

    @abstractmethod
    def sequences(self, split: str, part: str) -> Collection[str]:
        """Return the names of the drives of a part ("train" or "val") of a split."""

    def ground(self, frame: Frame) -> GroundMap:
        """Return the map around a frame; default: there is none."""
        return {}

    def boxes(self, frame: Frame) -> Boxes:
        """Return the objects at the moment of a frame; default: none."""
        return Boxes.none()

    def stored_labels(self, frame: Frame, grid: BEVGridConfig) -> np.ndarray | None:
        """Return labels kept beside the frame, (rows, columns) sums of 2^k; None: map and boxes tell them."""
        return None

    def lidar_points(self, frame: Frame) -> np.ndarray | None:
        """Return (n, 3) laser points in the frame's camera coordinates; None: there are none."""
        return None
