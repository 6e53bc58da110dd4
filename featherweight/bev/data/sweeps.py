"""Frames made of laser sweeps: the picture of each camera that is nearest in time, and the boxes of the sweep."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from featherweight.bev.data.frames import Boxes, Frame, Source
from featherweight.bev.geometry import inverse_pose, pose, transform
from featherweight.errors import ConfigError

LARGEST_GAP_NS = 51_000_000
"""Between a sweep and its picture: half of the time between two sweeps."""
Calibration = tuple[np.ndarray, np.ndarray, tuple[int, int]]
"""K, camera_to_ego, (width, height)."""
EgoBox = tuple[Sequence[float], Sequence[float], Sequence[float], int]
"""Centre, (width, length, height), quaternion, class; in coordinates of the car."""


class SweepSource(Source):
    """Logs of a car with cameras and a turning laser; times are nanoseconds. Subclasses only read files.

    Args:
        logs: folders, one a drive.
        cameras: names of the cameras to keep.
    Raises:
        ConfigError: if no frame is found.
    """

    def __init__(self, logs: Iterable[Path], cameras: Sequence[str]) -> None:
        self._sweeps: list[tuple[Path, int]] = []
        frames: list[Frame] = []
        for log in logs:
            for camera in cameras:
                frames += self._frames_of(log, camera, len(frames))
        self.frames: Sequence[Frame] = frames
        if not frames:
            raise ConfigError(
                f"{type(self).__name__}: no sweep has a picture of {', '.join(cameras)}; expected cameras such as "
                "ring_front_center. Choose other cameras, or unpack the pictures."
            )

    @abstractmethod
    def pictures(self, log: Path, camera: str) -> Mapping[int, Path]:
        """Return the pictures of a camera by their time."""

    @abstractmethod
    def sweep_times(self, log: Path) -> Iterable[int]:
        """Return the times of the laser's sweeps."""

    @abstractmethod
    def calibration(self, log: Path, camera: str) -> Calibration:
        """Return what is known of a camera."""

    @abstractmethod
    def ego_pose(self, log: Path, time: int) -> np.ndarray | None:
        """Return the car's pose (4 x 4, ego to world, on flat ground) at a time; None: it is not known."""

    @abstractmethod
    def annotations(self, log: Path, time: int) -> Sequence[EgoBox]:
        """Return the boxes of a sweep."""

    @abstractmethod
    def points(self, log: Path, time: int) -> np.ndarray:
        """Return the points of a sweep, (n, 3) m in coordinates of the car."""

    def log_of(self, frame: Frame) -> Path:
        """Return the folder of a frame's drive."""
        return self._sweeps[frame.index][0]

    def boxes(self, frame: Frame) -> Boxes:
        """Return the boxes of the frame's sweep."""
        log, sweep = self._sweeps[frame.index]
        return boxes_in_world(self.annotations(log, sweep), self._sweep_pose(frame))

    def lidar_points(self, frame: Frame) -> np.ndarray | None:
        """Return the laser points of the frame's sweep in its camera coordinates."""
        log, sweep = self._sweeps[frame.index]
        return transform(inverse_pose(frame.camera_to_world) @ self._sweep_pose(frame), self.points(log, sweep))

    def _sweep_pose(self, frame: Frame) -> np.ndarray:
        found = self.ego_pose(*self._sweeps[frame.index])
        return frame.ego_to_world if found is None else found

    def _frames_of(self, log: Path, camera: str, first: int) -> list[Frame]:
        pictures = self.pictures(log, camera)
        if not pictures:
            return []
        times = np.array(sorted(pictures))
        intrinsics, camera_to_ego, (width, height) = self.calibration(log, camera)
        found: list[Frame] = []
        for sweep in sorted(self.sweep_times(log)):
            nearest = int(times[np.abs(times - sweep).argmin()])
            ego_to_world = self.ego_pose(log, nearest)
            if abs(nearest - sweep) > LARGEST_GAP_NS or ego_to_world is None:
                continue
            self._sweeps.append((log, sweep))
            found.append(
                Frame(
                    index=first + len(found),
                    token=f"{log.name}-{camera}-{nearest}",
                    sequence=log.name,
                    camera=camera,
                    image=pictures[nearest],
                    width=width,
                    height=height,
                    timestamp=nearest / 1e9,
                    intrinsics=intrinsics,
                    camera_to_ego=camera_to_ego,
                    ego_to_world=ego_to_world,
                )
            )
        return found


def boxes_in_world(found: Sequence[EgoBox], ego_to_world: np.ndarray) -> Boxes:
    """Return boxes of the car's coordinates in the world. They stand upright: a footprint needs the heading alone."""
    if not found:
        return Boxes.none()
    placed = [ego_to_world @ pose(rotation, center) for center, _, rotation, _ in found]
    yaws = np.array([np.arctan2(matrix[1, 0], matrix[0, 0]) for matrix in placed])
    nothing = np.zeros_like(yaws)
    return Boxes(
        centers=np.array([matrix[:3, 3] for matrix in placed]),
        sizes=np.array([size for _, size, _, _ in found], dtype=np.float64),
        rotations=np.stack([np.cos(yaws / 2), nothing, nothing, np.sin(yaws / 2)], axis=1),
        classes=np.array([kind for *_, kind in found], np.int8),
        visibility=np.zeros(len(found), np.int8),
    )
