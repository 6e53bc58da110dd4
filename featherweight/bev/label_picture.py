"""Looking at labels: those of a frame beside its picture, those of a file, and how frequent each class is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featherweight.bev.data.classes import ClassList
from featherweight.bev.data.frames import Frame, Source
from featherweight.bev.data.layers import LabelMode
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.image_processing_focusbev import read_image, to_rgb
from featherweight.bev.labels import make_labels
from featherweight.bev.pictures import Panel, class_colors, hatch, legend, map_picture, overlay, sheet
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image


def grid_of(mode: LabelMode) -> BEVGridConfig:
    """Return the published cells of 0.25 m, anchored as the mode asks for."""
    return BEVGridConfig(anchor="center" if mode == "exact" else "corner")


def bits_of(source: Source, frame: Frame, grid: BEVGridConfig, mode: LabelMode) -> np.ndarray:
    """Return the labels of a frame: those kept beside it, else those that map and boxes tell."""
    stored = source.stored_labels(frame, grid)
    return make_labels(source, frame, grid, mode) if stored is None else stored


def draw_frame(source: Source, frame: Frame, mode: LabelMode) -> "Image":
    """Return the camera's picture with the labels laid over, the map of the labels, and a legend."""
    grid, names = grid_of(mode), source.classes.names
    masks, seen = source.classes.split_bits(bits_of(source, frame, grid, mode))
    picture = to_rgb(read_image(frame.image))
    laid_over = overlay(picture, masks & seen, names, grid, frame.intrinsics, frame.camera_to_ego)
    return _with_legend(
        [Panel("Camera, labels laid over", laid_over), Panel(f"Labels ({mode})", _map(masks, seen, names, grid))],
        (masks & seen).any(axis=(1, 2)),
        names,
    )


def draw_file(path: str | Path, classes: ClassList) -> "Image":
    """Return the map that a picture of bits holds: sums of 2^k, 16 or 32 bits, row 0 nearest.

    Raises:
        ConfigError: if it is no such picture, or has other than the published cells of 0.25 m or 0.5 m.
    """
    bits = np.asarray(read_image(path))
    grids = {(grid := BEVGridConfig(resolution=size)).shape: grid for size in (0.25, 0.5)}
    if bits.ndim != 2 or bits.dtype.kind not in "iu" or bits.shape not in grids:
        expected = " or ".join(f"{columns} x {rows}" for rows, columns in grids)
        raise ConfigError(
            f"bev labels: '{path}' has shape {bits.shape} of {bits.dtype}; expected one whole number for each of "
            f"{expected} cells. Give a picture of labels, or the folder of a data set."
        )
    masks, seen = classes.split_bits(bits.astype(np.int64))
    panel = Panel("Labels", _map(masks, seen, classes.names, grids[bits.shape]))
    return _with_legend([panel], (masks & seen).any(axis=(1, 2)), classes.names)


def class_shares(source: Source, frames: Sequence[Frame], mode: LabelMode) -> dict[str, float]:
    """Return the share of seen cells that hold each class, over some frames: the `priors` of a network."""
    grid, held, total = grid_of(mode), np.zeros(len(source.classes.names)), 0
    for frame in frames:
        masks, seen = source.classes.split_bits(bits_of(source, frame, grid, mode))
        held += (masks & seen).sum(axis=(1, 2))
        total += int(seen.sum())
    return dict(zip(source.classes.names, (held / max(1, total)).tolist(), strict=True))


def _map(masks: np.ndarray, seen: np.ndarray, names: Sequence[str], grid: BEVGridConfig) -> "Image":
    return map_picture(hatch(class_colors(masks, names), seen), grid)


def _with_legend(panels: Sequence[Panel], exists: np.ndarray, names: Sequence[str]) -> "Image":
    shown = [name for name, found in zip(names, exists, strict=True) if found]
    return sheet(panels, legend(shown, sheet(panels).width))
