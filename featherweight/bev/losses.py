"""Losses of ground segmentation; every sum is taken in float32, whatever the autocast.

Sources: weighted binary cross-entropy and the uncertainty term of arXiv 2003.13402; the IoU loss realises the idea of
arXiv 2410.15932, whose formula is not public: each class counts once, whatever number of cells it has, and a small
displacement costs less than a miss.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, pad
from torch.utils.checkpoint import checkpoint

TOLERANCE_WEIGHTS = (0.6, 0.3, 0.1)
"""Weight of the IoU at a tolerance of 0, 1 and 2 cells."""


def segmentation_losses(
    logits: Tensor,
    labels: Tensor,
    seen: Tensor,
    priors: Sequence[float],
    *,
    pooled: bool = False,
    objects: Sequence[int] = (),
    recompute: bool = False,
) -> dict[str, Tensor]:
    """Return the terms of logits (B, K, h, w) against labels alike, where `seen` (B, h, w) is true.

    All are means over frames, so that they add up, but for the IoU if it is pooled over the micro-batch. With numbers
    of classes that are objects, "occupancy" is among the terms. `recompute`: see `iou_loss`.
    """
    terms = {
        "bce": weighted_bce(logits, labels, seen, priors),
        "iou": iou_loss(logits, labels, seen, pooled=pooled, recompute=recompute),
        "uncertainty": uncertainty_loss(logits, seen, priors),
    }
    if objects:
        terms["occupancy"] = occupancy_loss(logits, labels, seen, objects, pooled=pooled)
    return terms


def occupancy_loss(
    logits: Tensor, labels: Tensor, seen: Tensor, objects: Sequence[int], *, pooled: bool = False
) -> Tensor:
    """Return 1 - IoU of the cells that hold any object: 1 - prod(1 - p) against any label; see `iou_loss`."""
    chosen = list(objects)
    log_free = torch.nn.functional.logsigmoid(-logits[:, chosen].float()).sum(1, keepdim=True)
    # logit of 1 - exp(log_free), without losing small probabilities.
    occupied = torch.log(-torch.expm1(log_free).clamp(max=-1e-7)) - log_free
    return iou_loss(occupied, labels[:, chosen].any(1, keepdim=True), seen, tolerance_weights=(1.0,), pooled=pooled)


def weighted_bce(logits: Tensor, labels: Tensor, seen: Tensor, priors: Sequence[float]) -> Tensor:
    """Return the mean over all cells of the cross-entropy, positives weighted by 1 / sqrt(prior), unseen cells by 0."""
    labels, seen = labels.float(), seen.float()[:, None]
    rarity = torch.tensor([max(prior, 1e-5) ** -0.5 for prior in priors], device=logits.device)[:, None, None]
    weight = ((rarity - 1) * labels + 1) * seen
    return binary_cross_entropy_with_logits(logits.float(), labels, weight=weight, reduction="mean")


def uncertainty_loss(logits: Tensor, seen: Tensor, priors: Sequence[float]) -> Tensor:
    """Return the mean over a frame's unseen cells of the cross-entropy against the prior; 0 where all are seen."""
    prior = torch.tensor(list(priors), device=logits.device)[:, None, None].expand_as(logits)
    unseen = ~seen[:, None].expand_as(logits)
    loss = binary_cross_entropy_with_logits(logits.float(), prior, reduction="none")
    return ((loss * unseen).sum((1, 2, 3)) / unseen.sum((1, 2, 3)).clamp(min=1)).mean()


def iou_loss(
    logits: Tensor,
    labels: Tensor,
    seen: Tensor,
    *,
    tolerance_weights: Sequence[float] = TOLERANCE_WEIGHTS,
    eps: float = 1.0,
    pooled: bool = False,
    recompute: bool = False,
) -> Tensor:
    """Return 1 - IoU, averaged over classes and frames, at several tolerances.

    Args:
        logits: (B, K, h, w).
        labels: (B, K, h, w) 0 or 1.
        seen: (B, h, w).
        tolerance_weights: weight of each tolerance in cells, from 0 on: both masks are dilated by it.
        eps: cells added to intersection and union: a class that is nowhere and nowhere predicted has IoU 1.
        pooled: sum the cells of all frames first; such losses do not add up over micro-batches.
        recompute: keep nothing of a tolerance for backward: the same numbers in less memory.
    Returns:
        A scalar; frames of which no cell was seen cost nothing.
    """
    seen_f = seen.float()[:, None]
    p, y = torch.sigmoid(logits.float()) * seen_f, labels.float() * seen_f
    total, cells = p.new_zeros(()), (0, 2, 3) if pooled else (2, 3)
    for tolerance, share in enumerate(tolerance_weights):
        arguments = (p, y, seen_f, tolerance, eps, cells)
        lost = checkpoint(_lost, *arguments, use_reentrant=False) if recompute else _lost(*arguments)
        total = total + share * lost.mean(-1)
    exists = seen.any() if pooled else seen.flatten(1).any(1)
    return (total * exists.float()).mean()


def _lost(p: Tensor, y: Tensor, seen: Tensor, tolerance: int, eps: float, cells: tuple[int, ...]) -> Tensor:
    """Return 1 - IoU of each class (and frame) at a tolerance in cells."""
    if tolerance:
        p, y = (dilate(one, tolerance) for one in (p, y))
    both = (seen * p * y).sum(cells)
    either = (seen * (p + y - p * y)).sum(cells)
    return 1 - (both + eps) / (either + eps)


def dilate(x: Tensor, cells: int) -> Tensor:
    """Return the largest value of the square of `cells` around each cell of (..., h, w), as `max_pool2d` does.

    First along columns, then along rows: 2 (2 cells + 1) comparisons a cell instead of (2 cells + 1)^2, and no indices
    that backward keeps. On a CPU half the time of `max_pool2d` for two cells with backward, a tenth without. Of equal
    values the first one gets the gradient.
    """
    return _Dilation.apply(_Dilation.apply(x, cells, -2), cells, -1)


class _Dilation(torch.autograd.Function):
    """The largest of 2 cells + 1 neighbours along one axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: int, axis: int) -> Tensor:
        padded = _padded(x, cells, axis, -torch.inf)
        size = x.shape[axis]
        largest = padded.narrow(axis, 0, size)
        for offset in range(1, 2 * cells + 1):
            largest = torch.maximum(largest, padded.narrow(axis, offset, size))
        ctx.save_for_backward(x, largest)
        ctx.cells, ctx.axis = cells, axis
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, largest = ctx.saved_tensors
        cells, axis, size = ctx.cells, ctx.axis, x.shape[ctx.axis]
        padded = _padded(x, cells, axis, -torch.inf)
        total = torch.zeros_like(padded)
        left = gradient
        for offset in range(2 * cells + 1):
            share = left * (padded.narrow(axis, offset, size) == largest)
            total.narrow(axis, offset, size).add_(share)
            left = left - share
        return total.narrow(axis, cells, size), None, None


def _padded(x: Tensor, cells: int, axis: int, value: float) -> Tensor:
    """Return `x` with `cells` more on both ends of one of its last two axes."""
    return pad(x, (cells, cells, 0, 0) if axis == -1 else (0, 0, cells, cells), value=value)


def cycle_loss(features: Tensor, restored: Tensor, relevance: Tensor) -> Tensor:
    """Return the mean absolute difference of restored (B, C, h, w) and true features, weighted by the relevance.

    Gradients reach neither the features nor the relevance: else both would shrink to nothing.
    """
    weight = torch.sigmoid(relevance.detach().float())
    away = (restored.float() - features.detach().float()).abs().sum(1, keepdim=True)
    return ((weight * away).sum((1, 2, 3)) / (features.shape[1] * weight.sum((1, 2, 3)) + 1e-6)).mean()


def relevance_loss(relevance: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of logits (B, 1, h, w) against shares (B, 1, height, width) of a finer picture."""
    soft = adaptive_avg_pool2d(target.float(), (relevance.shape[2], relevance.shape[3]))
    return binary_cross_entropy_with_logits(relevance.float(), soft)


def pitch_loss(pitch: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error of (B, 2) angles, in degrees."""
    return torch.rad2deg(pitch.float() - target.float()).abs().mean()
