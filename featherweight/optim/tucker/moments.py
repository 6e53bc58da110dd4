"""What a refresh does to the moments of a tensor's core, mode by mode."""

import torch
from torch import Tensor

from featherweight.linalg.tucker import SliceSubspace, TensorSubspace, TuckerSubspace
from featherweight.optim.policies.moments import moment_policies
from featherweight.optim.tucker.plan import TensorPlan


def carry(
    policy: str,
    plan: TensorPlan,
    moments: dict[str, Tensor],
    fresh: TensorSubspace,
    old: TensorSubspace,
    step: int,
    betas: tuple[float, float],
) -> int:
    """Bring the moments of a core into a new subspace, in place; return the step count that they then have.

    With "rotate", ``M <- M x_k Q_k`` and, with bias-corrected moments, ``V <- (1 - b2^t) |(v - |m|^2) x_k |Q_k|^2 +
    |m x_k Q_k|^2|``, Q_k the overlap of mode k: the moments of a vector whose coordinates are independent. "align" has
    turned the new bases to the old ones already, so that the moments stay.

    Source: LDAdam, arXiv 2410.16103, section 3, mode by mode.
    """
    if policy in ("keep", "align"):
        return step
    if policy == "reset":
        return moment_policies.get("reset")(moments, (None, None), step, betas)
    overlap = fresh.overlap(old)  # type: ignore[arg-type]
    mean = plan.numbers(moments["exp_avg"])
    turned = fresh.transform(mean, [None if q is None else q.to(mean.dtype) for q in overlap])
    if "exp_avg_sq" in moments:
        exp_avg_sq, correction1, correction2 = moments["exp_avg_sq"], 1 - betas[0] ** step, 1 - betas[1] ** step
        has_pairs = plan.is_complex and not plan.by_modulus
        # A turn mixes the two parts of a number, so that pairs share what one number has.
        total = exp_avg_sq.sum(dim=-1) if has_pairs else exp_avg_sq
        squared = [None if q is None else q.abs().square().to(total.dtype) for q in overlap]
        variance = total / correction2 - (mean.abs() / correction1).square()
        moved = fresh.transform(variance, squared) + (turned.abs() / correction1).square()
        moved = moved.abs_().mul_(correction2)
        exp_avg_sq.copy_((moved / 2).unsqueeze(-1).expand_as(exp_avg_sq) if has_pairs else moved)
    moments["exp_avg"].copy_(plan.pairs(turned))
    return step


def aligned(fresh: TensorSubspace, old: TensorSubspace) -> TensorSubspace:
    """Return the same subspace in the bases that are nearest to the old ones: ``U P`` with the polar factor P of U^H V.

    Source: the orthogonal Procrustes problem, Schoenemann, Psychometrika 31 (1966).
    """
    turned: list[Tensor | None] = []
    for overlap in fresh.overlap(old):  # type: ignore[arg-type]
        left, _, right = torch.linalg.svd(overlap) if overlap is not None else (None, None, None)
        turned.append(None if left is None else left @ right)
    if isinstance(fresh, SliceSubspace):
        (turn,) = turned
        assert turn is not None
        return SliceSubspace(fresh.shape, fresh.basis @ turn)
    factors = [
        u if u is None or turn is None or u.dtype == torch.int64 else u @ turn
        for u, turn in zip(fresh.factors, turned, strict=True)
    ]
    return TuckerSubspace(fresh.shape, tuple(factors))
