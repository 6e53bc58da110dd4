"""Where a score comes from: by condition, visibility and threshold, without the mask, and how far probabilities hold.

None of these numbers is the score of `featherweight.bev.metrics`, and none may be compared with published ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featherweight.bev.data.frames import Frame, Source
from featherweight.bev.data.layers import LabelMode
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.labels import visibility_masks
from featherweight.bev.metrics import BEVConfusion

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
VISIBILITY = ("0-40 %", "40-60 %", "60-80 %", "80-100 %")
"""Shares of an object that a camera sees: nuScenes' levels 1 to 4."""
_BINS = 10


def condition_of(description: str) -> str:
    """Return day, rain or night from what nuScenes says about a drive; a rainy night counts as night.

    Example:
        >>> condition_of("Night, after rain, parked cars"), condition_of("Rain, wait at crossing"), condition_of("Bus")
        ('night', 'rain', 'day')
    """
    words = description.lower()
    return "night" if "night" in words else "rain" if "rain" in words else "day"


class Breakdown:
    """Counts beside those of `BEVConfusion`, over the same frames.

    Args:
        source: data set.
        frames: that are judged, in the order in which `update` gets them.
        grid: of the labels.
        mode: of the labels.
    """

    def __init__(self, source: Source, frames: Sequence[Frame], grid: BEVGridConfig, mode: LabelMode) -> None:
        self.source, self.frames, self.grid, self.mode = source, frames, grid, mode
        names = source.classes.names
        self.whole_grid = BEVConfusion(names, grid)
        self.by_condition: dict[str, BEVConfusion] = {}
        self.sweep = [BEVConfusion(names, grid, threshold) for threshold in THRESHOLDS]
        self.found = torch.zeros(2, len(VISIBILITY), len(names), dtype=torch.int64)
        """Cells of objects that were found, and all, by visibility and class."""
        self._bins = torch.zeros(3, len(names), _BINS, dtype=torch.float64)  # cells, sum of probabilities, positives
        self._done = 0

    def update(self, logits: Tensor, labels: Tensor, seen: Tensor) -> None:
        """Count the next frames; shapes as in `BEVConfusion.update`."""
        logits, labels, seen = logits.float().cpu(), labels.cpu().bool(), seen.cpu().bool()
        self.whole_grid.update(logits, labels, torch.ones_like(seen))
        for scores in self.sweep:
            scores.update(logits, labels, seen)
        probability = logits.sigmoid()
        for number in range(len(logits)):
            frame = self.frames[self._done]
            condition = condition_of(self.source.descriptions.get(frame.sequence, ""))
            kept = self.by_condition.setdefault(condition, BEVConfusion(self.source.classes.names, self.grid))
            one = slice(number, number + 1)
            kept.update(logits[one], labels[one], seen[one])
            masks = torch.from_numpy(visibility_masks(self.source, frame, self.grid, self.mode))
            cells = masks & seen[number]
            self.found[0] += (cells & (probability[number] > 0.5)).sum((2, 3))
            self.found[1] += cells.sum((2, 3))
            self._done += 1
        self._count_probabilities(probability.movedim(1, 0)[:, seen], labels.movedim(1, 0)[:, seen])

    def _count_probabilities(self, probability: Tensor, labels: Tensor) -> None:
        """Add (K, n) probabilities and truths of seen cells to the bins."""
        bins = (probability * _BINS).long().clamp(max=_BINS - 1)
        for row, values in enumerate((torch.ones_like(probability), probability, labels.float())):
            self._bins[row].scatter_add_(1, bins, values.double())

    def calibration_error(self) -> dict[str, float]:
        """Return by class the mean distance of probability and frequency over ten bins, weighted by their cells."""
        cells, probability, positives = self._bins
        error = (probability - positives).abs().sum(1) / cells.sum(1).clamp(min=1)
        exists = positives.sum(1) > 0
        names = self.source.classes.names
        return {name: float(error[k]) for k, name in enumerate(names) if exists[k]}

    def best_thresholds(self) -> dict[str, tuple[float, float]]:
        """Return by class the threshold with the largest IoU, and that IoU: chosen on what is judged."""
        swept = [scores.iou() for scores in self.sweep]
        best = {}
        for name in swept[0]:
            values = [scores[name] for scores in swept]
            place = int(np.argmax(values))
            best[name] = (THRESHOLDS[place], values[place])
        return best

    def recall_by_visibility(self) -> dict[str, dict[str, float]]:
        """Return by visibility the share of each class's cells that was found; false cells have no visibility."""
        names = self.source.classes.names
        found, all_cells = self.found.double()
        return {
            level: {name: float(found[row, k] / all_cells[row, k]) for k, name in enumerate(names) if all_cells[row, k]}
            for row, level in enumerate(VISIBILITY)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        best = self.best_thresholds()
        return {
            "by_condition": {
                name: {"frames": scores.frames, "miou": scores.mean_iou()} for name, scores in self.by_condition.items()
            },
            "recall_by_visibility": self.recall_by_visibility(),
            "without_mask": {"miou": self.whole_grid.mean_iou(), "iou": self.whole_grid.iou()},
            "best_threshold_not_comparable": {
                "miou": sum(value for _, value in best.values()) / max(1, len(best)),
                "threshold": {name: threshold for name, (threshold, _) in best.items()},
            },
            "calibration_error": self.calibration_error(),
        }
