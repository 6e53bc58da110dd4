"""What happens to the moments when the subspace changes.

The moments are coordinates in the old basis; a refresh gives a new one. C = new^T old maps old coordinates to new ones.
Shapes: core (R, N) behind a left basis, (M, R) behind a right one, (R, R) behind both; C_left, C_right are (R, R).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from featherweight.registry import Registry

Overlap = tuple[Tensor | None, Tensor | None]
MomentPolicy = Callable[[Mapping[str, Tensor], Overlap, int, tuple[float, float]], int]
"""``policy(moments, overlap, step, betas) -> step`` changes the moments in place; `step` counts the steps they hold."""


def keep(moments: Mapping[str, Tensor], overlap: Overlap, step: int, betas: tuple[float, float]) -> int:
    """Leave the moments as they are: stale coordinates in a new basis, as the official code does (arXiv 2403.03507)."""
    return step


def reset(moments: Mapping[str, Tensor], overlap: Overlap, step: int, betas: tuple[float, float]) -> int:
    """Set the moments to zero (an option of FRUGAL, arXiv 2411.07837).

    Their step count starts again too: with the old count the bias correction would be missing and the next step 3
    times too long.
    """
    for moment in moments.values():
        moment.zero_()
    return 0


def rotate(moments: Mapping[str, Tensor], overlap: Overlap, step: int, betas: tuple[float, float]) -> int:
    """Express the moments in the new basis.

    With the bias-corrected moments ``m = exp_avg / (1 - b1^t)`` and ``v = exp_avg_sq / (1 - b2^t)``: ``exp_avg <- C
    exp_avg`` and ``exp_avg_sq <- (1 - b2^t) |(C*C)(v - m^2) + (C m)^2|``, a rotated mean and, under independent
    coordinates, a rotated variance. ``C = I`` changes nothing. Factored second moments: ``row <- (C*C) row``, and the
    column follows its mean.

    Cost: two products of an (R, R) with a core for each moment.
    Source: LDAdam, arXiv 2410.16103, section 3.
    """
    if step == 0:
        return step
    squared: Overlap = tuple(None if c is None else c.square() for c in overlap)  # type: ignore[assignment]
    exp_avg = moments.get("exp_avg")
    rotated = None if exp_avg is None else _transform(exp_avg, overlap)
    if "exp_avg_sq" in moments:
        assert exp_avg is not None and rotated is not None
        exp_avg_sq = moments["exp_avg_sq"]
        correction1, correction2 = 1 - betas[0] ** step, 1 - betas[1] ** step
        variance = exp_avg_sq.div(correction2).sub_(exp_avg.div(correction1).square_())
        mean_sq = rotated.div(correction1).square_()
        exp_avg_sq.copy_(_transform(variance, squared).add_(mean_sq).abs_().mul_(correction2))
    names = ("exp_avg_sq_row", "exp_avg_sq_col")
    for name, other, factor in zip(names, reversed(names), squared, strict=True):
        if name in moments and factor is not None:
            before = moments[name].mean()
            moments[name].copy_(factor @ moments[name])
            # Both describe one second moment, so their means stay equal.
            moments[other].mul_(torch.where(before > 0, moments[name].mean() / before, 1))
    if exp_avg is not None and rotated is not None:
        exp_avg.copy_(rotated)
    return step


def _transform(core: Tensor, overlap: Overlap) -> Tensor:
    left, right = overlap
    if left is not None:
        core = left @ core
    if right is not None:
        core = core @ right.mT
    return core


moment_policies: Registry[MomentPolicy] = Registry("moment_policy")
moment_policies.register("rotate", rotate)
moment_policies.register("keep", keep)
moment_policies.register("reset", reset)
