"""Scores of ground segmentation: counts over the whole split first, ratios last.

IoU of a class is TP / (TP + FP + FN) over all seen cells of all frames; mIoU is the mean over classes that exist. A
mean of the IoU of each picture is another number, and is never called mIoU here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherweight.bev.grid import BEVGridConfig

BANDS_M = ((1, 10), (10, 20), (20, 35), (35, 50))
"""Distances that are judged apart."""


class BEVConfusion:
    """True positives, false positives and false negatives of each class, as whole numbers.

    Args:
        names: of the classes.
        grid: of labels and predictions, for the distance bands.
        threshold: probability above which a class is predicted.

    Example:
        >>> scores = BEVConfusion(["road"], BEVGridConfig(x_min=0, x_max=2, z_min=1, z_max=3, resolution=1))
        >>> truth = torch.tensor([[[[1, 1], [0, 0]]]]).bool()
        >>> scores.update(torch.tensor([[[[9.0, -9.0], [9.0, -9.0]]]]), truth, torch.ones(1, 2, 2).bool())
        >>> scores.iou()
        {'road': 0.3333333333333333}
    """

    def __init__(self, names: Sequence[str], grid: BEVGridConfig, threshold: float = 0.5) -> None:
        self.names, self.grid, self.threshold = list(names), grid, threshold
        depth = torch.from_numpy(grid.depths())
        self._bands = torch.stack([(depth >= near) & (depth < far) for near, far in BANDS_M])
        self.counts = torch.zeros(3, len(BANDS_M), len(self.names), dtype=torch.int64)
        """(TP, FP, FN) x bands x classes; additive over batches and processes."""
        self.frames = 0

    def update(self, logits: Tensor, labels: Tensor, seen: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (B, K, rows, columns).
            labels: the same shape, bool.
            seen: (B, rows, columns) bool.
        """
        predicted = logits.float().sigmoid() > self.threshold
        labels, seen = labels.bool(), seen.bool()[:, None]
        for row, hit in enumerate((predicted & labels, predicted & ~labels, ~predicted & labels)):
            by_depth = (hit & seen).sum((0, 3)).cpu()  # (K, rows)
            self.counts[row] += self._bands.long() @ by_depth.T
        self.frames += len(logits)

    def iou(self, band: int | None = None) -> dict[str, float]:
        """Return the IoU of each class that exists, over all distances or one band."""
        tp, fp, fn = self.counts.sum(1) if band is None else self.counts[:, band]
        return {
            name: float(tp[k]) / float(tp[k] + fp[k] + fn[k]) for k, name in enumerate(self.names) if tp[k] + fn[k] > 0
        }

    def mean_iou(self, band: int | None = None) -> float:
        """Return the mean over classes that exist; 0 if none does."""
        values = list(self.iou(band).values())
        return sum(values) / len(values) if values else 0.0


def protocol(
    classes: str,
    grid: BEVGridConfig,
    cameras: int,
    mode: str,
    *,
    lidar_mask: bool,
    split: str,
    threshold: float = 0.5,
    past_mask: bool = False,
) -> str:
    """Return the one line that says what a score means; two scores with different lines cannot be compared.

    Args:
        classes: their short name.
        grid: of the ground.
        cameras: kinds of cameras among the frames.
        mode: of the labels.
        lidar_mask: whether cells behind the farthest laser point count neither way.
        split: which drives judge.
        threshold: of the probabilities.
        past_mask: whether cells count that past frames alone have seen.
    Example:
        >>> protocol("pon14", BEVGridConfig(), 6, "pon", lidar_mask=True, split="pon")
        'pon14/pon/0.25m/6cam/fov+lidar/thr0.5/pooled/split=pon'
    """
    mask = "fov" + "+lidar" * lidar_mask + "+past" * past_mask
    return f"{classes}/{mode}/{grid.resolution:g}m/{cameras}cam/{mask}/thr{threshold:g}/pooled/split={split}"
