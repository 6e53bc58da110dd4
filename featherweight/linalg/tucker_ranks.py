"""Ranks by mode: from a share of the entries, a cap, a list, or the spectrum of a gradient.

Shapes: D modes of sizes n_k, N = n_1 * .. * n_D entries.
"""

from collections.abc import Sequence
from math import prod
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.linalg.tucker import contract, upcast
from featherweight.linalg.tucker_fit import fix_phases, mode_gram

RankCounts = Literal["core", "state", "tensorgrad", "tensorly"]
RANK_COUNTS: tuple[str, ...] = get_args(RankCounts)

Rank = float | int | Sequence[int] | Sequence[float]

STATE_FACTOR_WEIGHT = 2 / 3
"""Bytes of a factor entry (complex64, 8) over those of a core entry with its moments (8 + 4)."""


def tucker_ranks(
    shape: Sequence[int], rank: Rank, counts: str = "core", modes: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the rank of each mode.

    Args:
        shape: (n_1, .., n_D).
        rank: a share of the entries in (0, 1]; a whole number that caps every mode; or one of them for each mode
            (shares of its size, or whole numbers).
        counts: what a share counts. "core": entries of the core (closest to the share, at most one index of one mode
            above it). "state": core, moments and factors against the moments of Adam. "tensorgrad":
            ``int(share^(1/D') n) + 1`` with D' modes of size above 1, the official TensorGRaD code. "tensorly": core
            and factors, as tensorly's `validate_tucker_rank`.
        modes: which modes may have less than their size; None means all.
    Returns:
        r_k with 1 <= r_k <= n_k, none above the product of the others.
    Raises:
        ConfigError: for a rank out of range.
    Example:
        >>> [tucker_ranks((24, 24, 8, 5), 0.25, counts) for counts in ("core", "tensorgrad", "tensorly")]
        [(17, 17, 6, 3), (17, 17, 6, 4), (16, 16, 5, 3)]
    """
    shape = tuple(shape)
    modes = tuple(range(len(shape))) if modes is None else tuple(modes)
    if counts not in RANK_COUNTS:
        raise ConfigError(
            f"tucker_ranks: rank_counts='{counts}' is unknown; expected one of {', '.join(RANK_COUNTS)}. "
            f"{did_you_mean(counts, RANK_COUNTS, otherwise=LISTED)}"
        )
    if isinstance(rank, Sequence):
        ranks = _listed(shape, rank)
    elif isinstance(rank, float):
        _require(rank, 0 < rank <= 1, "a share in (0, 1]")
        ranks = _shared(shape, rank, counts, modes)
    else:
        _require(rank, not isinstance(rank, bool) and isinstance(rank, Integral) and rank >= 1, "a whole number >= 1")
        cap = int(rank)
        ranks = tuple(min(cap, n) if k in modes else n for k, n in enumerate(shape))
    return _within_each_other(ranks)


def greedy_ranks(grad: Tensor, budget: int, modes: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return ranks for a budget of core entries that follow the spectrum of a gradient.

    In the coordinates of its higher-order singular vectors, the core's last index of a mode is dropped where the lost
    energy for each entry saved is least, until the core fits.

    Args:
        grad: (n_1, .., n_D) finite. Not modified.
        budget: entries of the core.
        modes: which modes may have less than their size; None means all.
    Returns:
        r_k with prod(r_k) <= budget.
    Raises:
        ConfigError: if the modes that keep their size alone have more entries than the budget.
    Cost: one Gram matrix and one full rotation for each mode, and sum(n_k) passes over the core; three transient
        tensors of the gradient's size, one of them in float64.
    Source: our own; the reviewers of arXiv 2501.02379 asked for such a rule.
    """
    modes = tuple(range(grad.ndim)) if modes is None else tuple(modes)
    fixed = prod(n for k, n in enumerate(grad.shape) if k not in modes)
    _require(budget, budget >= fixed, f"at least {fixed} entries")
    grad = upcast(grad)
    factors: list[Tensor | None] = [None] * grad.ndim
    for mode in modes:
        vectors = torch.linalg.eigh(mode_gram(grad, mode)).eigenvectors.flip(-1)
        factors[mode] = fix_phases(vectors).to(grad.dtype).mH
    energy = contract(grad, factors).abs().double().square()
    while energy.numel() > budget:
        costs = []
        for mode, size in enumerate(energy.shape):
            if mode in modes and size > 1:
                last = float(energy.select(mode, size - 1).sum())
                costs.append((last / (energy.numel() // size), mode))
        _, mode = min(costs)
        energy = energy.narrow(mode, 0, energy.shape[mode] - 1)
    return _within_each_other(tuple(energy.shape))


def _listed(shape: tuple[int, ...], rank: Sequence[Any]) -> tuple[int, ...]:
    _require(rank, len(rank) == len(shape), f"{len(shape)} entries, one for each mode of {shape}")
    ranks = []
    for size, one in zip(shape, rank, strict=True):
        is_share = isinstance(one, float)
        _require(rank, (0 < one <= 1) if is_share else one >= 1, "shares in (0, 1] or whole numbers >= 1")
        ranks.append(max(1, round(one * size)) if is_share else min(int(one), size))
    return tuple(ranks)


def _shared(shape: tuple[int, ...], share: float, counts: str, modes: tuple[int, ...]) -> tuple[int, ...]:
    if share == 1:
        return shape
    free = [k for k in modes if shape[k] > 1]
    if counts == "tensorgrad":
        side = share ** (1 / max(1, len(free)))
        return tuple(min(n, int(side * n) + 1) if k in free else n for k, n in enumerate(shape))
    if counts == "tensorly":
        side = _tensorly_side(shape, share, modes)
        return tuple(min(n, max(1, round(side * n))) if k in modes else n for k, n in enumerate(shape))
    weight = STATE_FACTOR_WEIGHT if counts == "state" else 0.0
    return _nearest(shape, share * prod(shape), weight, free)


def _nearest(shape: tuple[int, ...], target: float, factor_weight: float, free: list[int]) -> tuple[int, ...]:
    """Grow all ranks in proportion, one index at a time, and stop where the cost is closest to the target."""
    ranks = [1 if k in free else n for k, n in enumerate(shape)]

    def cost() -> float:
        return prod(ranks) + factor_weight * sum(n * r for n, r in zip(shape, ranks, strict=True) if r < n)

    before, below = tuple(ranks), cost()
    while (mode := _next_to_grow(shape, ranks, free)) is not None:
        ranks[mode] += 1
        now = cost()
        if now > target:
            return tuple(ranks) if now - target < target - below else before
        before, below = tuple(ranks), now
    return tuple(ranks)


def _next_to_grow(shape: tuple[int, ...], ranks: list[int], free: list[int]) -> int | None:
    """Return the mode that grows next: the one that is furthest behind among those whose growth is of use.

    Rank r of a mode of size n begins at the share (r - 1/2) / n of all modes.
    """
    behind = sorted((k for k in free if ranks[k] < shape[k]), key=lambda k: ((ranks[k] + 0.5) / shape[k], k))
    numel = prod(ranks)
    useful = [k for k in behind if ranks[k] + 1 <= numel // ranks[k]]
    return next(iter(useful or behind), None)


def _tensorly_side(shape: tuple[int, ...], share: float, modes: tuple[int, ...]) -> float:
    """Solve ``N x^D + x sum(n_k^2) = share N`` by bisection."""
    numel, squares = prod(shape), sum(shape[k] ** 2 for k in modes)
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if numel * middle ** len(modes) + squares * middle > share * numel:
            high = middle
        else:
            low = middle
    return low


def _within_each_other(ranks: tuple[int, ...]) -> tuple[int, ...]:
    """A core mode cannot have a larger rank than the product of the others."""
    current = list(ranks)
    for _ in current:
        for mode in range(len(current)):
            others = prod(current) // current[mode]
            if len(current) > 1:
                current[mode] = min(current[mode], others)
    return tuple(current)


def _require(rank: object, condition: bool, expected: str) -> None:
    if not condition:
        raise ConfigError(f"tucker_ranks: rank={rank!r} is not allowed; expected {expected}. Change rank.")
