"""Losses of ground segmentation; every sum is taken in float32, whatever the autocast.

Sources: weighted binary cross-entropy and the uncertainty term of arXiv 2003.13402; the IoU loss realises the idea of
arXiv 2410.15932, whose formula is not public: each class counts once, whatever number of cells it has, and a small
displacement costs less than a miss.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, max_pool2d

from featherweight.config import Config

TOLERANCE_WEIGHTS = (0.6, 0.3, 0.1)
"""Weight of the IoU at a tolerance of 0, 1 and 2 cells."""


class LossWeights(Config):
    """Weights of the terms."""

    bce: float = Field(default=1.0, ge=0)
    """Weighted binary cross-entropy."""
    iou: float = Field(default=1.0, ge=0)
    """Occupancy-agnostic IoU."""
    uncertainty: float = Field(default=0.001, ge=0)
    """Pull of unseen cells to the prior."""
    cycle: float = Field(default=0.1, ge=0)
    """Restored against true image features."""
    relevance: float = Field(default=0.1, ge=0)
    """Relevance of pixels against their geometry."""
    pitch: float = Field(default=1.0, ge=0)
    """Estimated against true pitch and roll."""

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of terms that have a weight."""
        return sum((getattr(self, name) * term for name, term in terms.items()), start=torch.zeros(()))


def segmentation_losses(logits: Tensor, labels: Tensor, seen: Tensor, priors: Sequence[float]) -> dict[str, Tensor]:
    """Return the terms of logits (B, K, h, w) against labels alike, where `seen` (B, h, w) is true."""
    return {
        "bce": weighted_bce(logits, labels, seen, priors),
        "iou": iou_loss(logits, labels, seen),
        "uncertainty": uncertainty_loss(logits, seen, priors),
    }


def weighted_bce(logits: Tensor, labels: Tensor, seen: Tensor, priors: Sequence[float]) -> Tensor:
    """Return the mean over all cells of the cross-entropy, positives weighted by 1 / sqrt(prior), unseen cells by 0."""
    labels, seen = labels.float(), seen.float()[:, None]
    rarity = torch.tensor([max(prior, 1e-5) ** -0.5 for prior in priors], device=logits.device)[:, None, None]
    weight = ((rarity - 1) * labels + 1) * seen
    return binary_cross_entropy_with_logits(logits.float(), labels, weight=weight, reduction="mean")


def uncertainty_loss(logits: Tensor, seen: Tensor, priors: Sequence[float]) -> Tensor:
    """Return the mean over unseen cells of the cross-entropy against the prior; 0 where all are seen."""
    prior = torch.tensor(list(priors), device=logits.device)[:, None, None].expand_as(logits)
    unseen = ~seen[:, None].expand_as(logits)
    loss = binary_cross_entropy_with_logits(logits.float(), prior, reduction="none")
    return (loss * unseen).sum() / unseen.sum().clamp(min=1)


def iou_loss(
    logits: Tensor,
    labels: Tensor,
    seen: Tensor,
    *,
    tolerance_weights: Sequence[float] = TOLERANCE_WEIGHTS,
    eps: float = 1.0,
) -> Tensor:
    """Return 1 - IoU, pooled over the batch, averaged over classes, at several tolerances.

    Args:
        logits: (B, K, h, w).
        labels: (B, K, h, w) 0 or 1.
        seen: (B, h, w).
        tolerance_weights: weight of each tolerance in cells, from 0 on: both masks are dilated by it.
        eps: cells added to intersection and union: a class that is nowhere and nowhere predicted has IoU 1.
    Returns:
        A scalar; 0 where no cell was seen. Pooled sums do not add up over micro-batches.
    """
    seen_f = seen.float()[:, None]
    p, y = torch.sigmoid(logits.float()) * seen_f, labels.float() * seen_f
    total = p.new_zeros(())
    for tolerance, share in enumerate(tolerance_weights):
        if tolerance:
            window = 2 * tolerance + 1
            p_wide, y_wide = (max_pool2d(one, window, stride=1, padding=tolerance) for one in (p, y))
        else:
            p_wide, y_wide = p, y
        both = (seen_f * p_wide * y_wide).sum((0, 2, 3))
        either = (seen_f * (p_wide + y_wide - p_wide * y_wide)).sum((0, 2, 3))
        total = total + share * (1 - (both + eps) / (either + eps)).mean()
    return total * seen.any().float()


def cycle_loss(features: Tensor, restored: Tensor, relevance: Tensor) -> Tensor:
    """Return the mean absolute difference of restored (B, C, h, w) and true features, weighted by the relevance.

    Gradients reach neither the features nor the relevance: else both would shrink to nothing.
    """
    weight = torch.sigmoid(relevance.detach().float())
    away = (restored.float() - features.detach().float()).abs().sum(1, keepdim=True)
    return (weight * away).sum() / (features.shape[1] * weight.sum() + 1e-6)


def relevance_loss(relevance: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of logits (B, 1, h, w) against shares (B, 1, height, width) of a finer picture."""
    soft = adaptive_avg_pool2d(target.float(), (relevance.shape[2], relevance.shape[3]))
    return binary_cross_entropy_with_logits(relevance.float(), soft)


def pitch_loss(pitch: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error of (B, 2) angles, in degrees."""
    return torch.rad2deg(pitch.float() - target.float()).abs().mean()
