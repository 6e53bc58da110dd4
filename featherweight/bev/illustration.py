"""What a network sees, says and gets wrong: frames of the judging drives on one sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from featherweight.bev.image_processing_focusbev import normalized
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.pictures import (
    ERROR_LEGEND,
    Panel,
    class_colors,
    error_colors,
    hatch,
    heat,
    legend,
    map_picture,
    overlay,
    sheet,
    stack,
)
from featherweight.bev.samples import Sample, batch_of

if TYPE_CHECKING:
    from PIL.Image import Image


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` numbers below `count`, evenly spread.

    Example:
        >>> spread(320, 3), spread(2, 3)
        ([53, 160, 266], [0, 1])
    """
    wanted = min(count, wanted)
    return [int((number + 0.5) * count / wanted) for number in range(wanted)]


def illustrate(model: FocusBEVForSegmentation, samples: Sequence[Sample], names: Sequence[str]) -> "Image":
    """Return a sheet with a row for each sample: camera, what the network reads, its map, the truth, the errors.

    Args:
        model: in evaluation mode; its memory is not used.
        samples: frames with their labels.
        names: of the classes.
    """
    rows: list[Image] = []
    shown: set[str] = set()
    for sample in samples:
        row, found = _row(model, sample, names, has_titles=not rows)
        rows.append(row)
        shown |= found
    below = legend([name for name in names if name in shown], rows[0].width)
    return stack([*rows, below])


def together(runs: Mapping[str, Path], name: str) -> "Image":
    """Return the sheets of several runs below one another, each under its name.

    Args:
        runs: name of a run -> its folder.
        name: of the file in each folder.
    """
    from PIL import Image

    sheets = []
    for title, folder in runs.items():
        with Image.open(folder / name) as picture:
            sheets.append(sheet([Panel(title, picture.convert("RGB"))], height=picture.height))
    return stack(sheets)


def _row(
    model: FocusBEVForSegmentation, sample: Sample, names: Sequence[str], *, has_titles: bool
) -> tuple["Image", set[str]]:
    from PIL import Image

    grid, batch = model.config.bev_grid, batch_of([sample])
    device = next(model.parameters()).device
    with torch.inference_mode():
        output = model(
            normalized(batch["pixels"]).to(device),
            batch["intrinsics"].to(device),
            camera_to_ego=batch["camera_to_ego"].to(device),
        )
    predicted, truth = output.logits[0].float().sigmoid().cpu().numpy() > 0.5, sample.labels
    camera = Image.fromarray(sample.pixels.transpose(1, 2, 0).copy())
    laid_over = overlay(camera, predicted & sample.seen, names, grid, sample.intrinsics, sample.camera_to_ego)
    panels = [Panel("Camera", camera), Panel("Map laid over", laid_over)]
    if output.relevance is not None:
        panels.append(Panel("What it reads", heat(camera, output.relevance[0, 0].sigmoid().float().cpu().numpy())))
    for title, masks in (("Map of the network", predicted), ("Truth", truth)):
        panels.append(Panel(title, map_picture(hatch(class_colors(masks, names), sample.seen), grid)))
    errors = map_picture(error_colors(predicted, truth, sample.seen), grid)
    panels.append(Panel("Errors", errors, ERROR_LEGEND))
    visible = ((predicted | truth) & sample.seen).any(axis=(1, 2))
    found = {name for name, is_visible in zip(names, visible, strict=True) if is_visible}
    return sheet(panels, has_titles=has_titles), found
