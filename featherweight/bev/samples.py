"""From frames to tensors: pixels, camera, labels, the past frames of a memory."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featherweight.bev.data.frames import Frame, Source
from featherweight.bev.data.layers import LabelMode
from featherweight.bev.geometry import ground_motion, in_view
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor, read_image
from featherweight.bev.labels import make_labels
from featherweight.errors import ConfigError

LARGEST_GAP_S, LARGEST_JUMP_M = 2.0, 20.0
"""A memory does not reach over more than this between two frames."""
_KEPT_BYTES = 2 << 30


@dataclass(frozen=True)
class Sample:
    """One frame as the network sees it."""

    pixels: np.ndarray
    """(3, height, width) uint8."""
    intrinsics: np.ndarray
    """3 x 3 of these pixels."""
    camera_to_ego: np.ndarray
    """4 x 4."""
    camera_to_world: np.ndarray
    """4 x 4."""
    timestamp: float
    labels: np.ndarray
    """(K, rows, columns) bool."""
    seen: np.ndarray
    """(rows, columns) bool."""
    in_view: np.ndarray
    """(feature rows, feature columns) bool: which feature cells the camera covers."""
    relevance: np.ndarray
    """(height, width) bool: pixels that tell about the ground."""
    tilt: tuple[float, float] = (0.0, 0.0)
    """Pitch and roll in radians that the calibration does not tell."""


class Samples:
    """Samples of a data set by number, kept in memory as far as 2 GiB reach.

    Args:
        source: data set.
        frames: those to use, in the order of their numbers.
        processor: makes pixels.
        grid: of the labels.
        feature_grid: of the network's ground features.
        mode: of the labels.
        lidar_mask: whether the laser says what was seen.
    """

    def __init__(
        self,
        source: Source,
        frames: Sequence[Frame],
        processor: FocusBEVImageProcessor,
        grid: BEVGridConfig,
        feature_grid: BEVGridConfig,
        mode: LabelMode,
        *,
        lidar_mask: bool = True,
    ) -> None:
        self.source, self.frames, self.processor = source, frames, processor
        self.grid, self.feature_grid, self.mode, self.lidar_mask = grid, feature_grid, mode, lidar_mask
        self._kept: OrderedDict[int, Sample] = OrderedDict()
        height, width = processor.image_size
        cells = grid.rows * grid.columns * (len(source.classes.names) + 1)
        self._capacity = max(64, _KEPT_BYTES // (4 * height * width + cells))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> Sample:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        sample = self._make(self.frames[number])
        self._kept[number] = sample
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return sample

    def past(self, number: int, length: int) -> list[int]:
        """Return the numbers of up to `length` frames before one, newest first, of the same drive and camera."""
        found: list[int] = []
        frame = self.frames[number]
        for earlier in range(number - 1, number - 1 - length, -1):
            before = self.frames[earlier] if earlier >= 0 else None
            if before is None or (before.sequence, before.camera) != (frame.sequence, frame.camera):
                break
            later = self.frames[found[-1]] if found else frame
            if not is_continuous(before, later):
                break
            found.append(earlier)
        return found

    def _make(self, frame: Frame) -> Sample:
        picture = read_image(frame.image)
        if picture.size != (frame.width, frame.height):
            raise ConfigError(
                f"bev: picture '{frame.image}' has {picture.width} x {picture.height} pixels, its record says "
                f"{frame.width} x {frame.height}; expected the same, for which its K holds. Restore the picture, or "
                "write its size and K into the records."
            )
        pixels, intrinsics = self.processor.fit(picture, frame.intrinsics)
        bits = self.source.stored_labels(frame, self.grid)
        if bits is None:
            bits = make_labels(self.source, frame, self.grid, self.mode, lidar_mask=self.lidar_mask)
        labels, seen = self.source.classes.split_bits(bits)
        return Sample(
            pixels=pixels,
            intrinsics=intrinsics,
            camera_to_ego=frame.camera_to_ego,
            camera_to_world=frame.camera_to_world,
            timestamp=frame.timestamp,
            labels=labels,
            seen=seen,
            in_view=in_view(self.feature_grid, intrinsics, self.processor.image_size[1]),
            relevance=ground_pixels(seen, self.grid, intrinsics, frame.camera_to_ego, self.processor.image_size),
        )


def is_continuous(before: Frame, after: Frame) -> bool:
    """Tell whether a memory may reach from one frame to the next."""
    gap = after.timestamp - before.timestamp
    jump = np.linalg.norm(after.camera_to_world[:3, 3] - before.camera_to_world[:3, 3])
    return bool(0 < gap <= LARGEST_GAP_S and jump <= LARGEST_JUMP_M)


def ground_pixels(
    seen: np.ndarray,
    grid: BEVGridConfig,
    intrinsics: np.ndarray,
    camera_to_ego: np.ndarray,
    image_size: tuple[int, int],
) -> np.ndarray:
    """Return which pixels (height, width) show flat ground in a cell of the grid that was seen.

    Walls below the horizon stand before cells that no laser beam reached, so that they do not count.
    """
    height, width = image_size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T
    down = -(rays @ camera_to_ego[2, :3])
    depth = camera_to_ego[2, 3] / np.where(down > 1e-6, down, np.inf)
    cells = grid.index(np.stack([rays[..., 0] * depth, depth], axis=-1))
    column, row = np.round(cells).astype(np.int64).transpose(2, 0, 1)
    inside = (down > 1e-6) & (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
    return inside & seen[np.where(inside, row, 0), np.where(inside, column, 0)]


def batch_of(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Return a micro-batch: pixels (uint8), cameras, labels and masks."""

    def stacked(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.stack([getattr(one, name) for one in samples])).to(dtype)

    return {
        "pixels": stacked("pixels", torch.uint8),
        "intrinsics": stacked("intrinsics", torch.float32),
        "camera_to_ego": stacked("camera_to_ego", torch.float32),
        "labels": stacked("labels", torch.bool),
        "seen": stacked("seen", torch.bool),
        "relevance": stacked("relevance", torch.bool),
        "tilt": torch.tensor([one.tilt for one in samples], dtype=torch.float32),
    }


def memory_of(
    present: Sequence[Sample], past: Sequence[Sequence[Sample]], length: int, grid: BEVGridConfig
) -> dict[str, Tensor]:
    """Return the past frames of a micro-batch, L each; missing ones repeat the present and are not valid.

    Args:
        present: B samples.
        past: of each, newest first, up to L.
        length: L.
        grid: whose plane the motion is taken in.
    Returns:
        past_pixels (B, L, 3, height, width), past_intrinsics, past_camera_to_ego, past_in_view, motion, age, valid.
    """
    filled = [[*earlier, *[now] * (length - len(earlier))] for now, earlier in zip(present, past, strict=True)]
    motion = [
        [ground_motion(one.camera_to_world, now.camera_to_world, grid.plane) for one in earlier]
        for now, earlier in zip(present, filled, strict=True)
    ]

    def stacked(name: str, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.stack([np.stack([getattr(s, name) for s in row]) for row in filled])).to(dtype)

    return {
        "past_pixels": stacked("pixels", torch.uint8),
        "past_intrinsics": stacked("intrinsics", torch.float32),
        "past_camera_to_ego": stacked("camera_to_ego", torch.float32),
        "past_in_view": stacked("in_view", torch.bool),
        "motion": torch.tensor(np.array(motion), dtype=torch.float32),
        "age": torch.tensor(
            [[now.timestamp - one.timestamp for one in row] for now, row in zip(present, filled, strict=True)],
            dtype=torch.float32,
        ),
        "valid": torch.tensor([[number < len(earlier) for number in range(length)] for earlier in past]),
    }


def seen_with_past(now: Sample, past: Sequence[Sample], grid: BEVGridConfig) -> np.ndarray:
    """Return which cells the present or a past frame has seen, as the present one counts them, bool (rows, columns)."""
    seen = now.seen.copy()
    points = grid.points()
    for earlier in past:
        motion = ground_motion(earlier.camera_to_world, now.camera_to_world, grid.plane)
        column, row = np.round(grid.index((points @ motion.T)[..., :2])).astype(np.int64).transpose(2, 0, 1)
        inside = (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
        seen |= inside & earlier.seen[np.where(inside, row, 0), np.where(inside, column, 0)]
    return seen
