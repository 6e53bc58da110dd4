"""Singular values of many matrices, and how a common budget becomes one rank for each.

Every rule is one cut through the pooled, normalised singular values of all matrices; they differ in how a value is
normalised and in what the budget counts. Rules take and return plain mappings of names, so that they know no modules.
Shapes: M rows, N columns, Q = min(M, N) singular values in descending order, R kept rank.
Source: WeLore, arXiv 2407.11239 (threshold on min-max normalised values; LRC at half of the rank).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featherweight.errors import ConfigError, NumericsError
from featherweight.linalg.orthonormal import one_thread

Spectra = Mapping[str, Tensor]
"""Name to singular values (Q,), descending, not negative."""

LRC_SHARE = 0.4999
"""A matrix that loses more than this share of its ranks is a low-rank component (LRC); see `is_low_rank_component`."""

GRAM_SIDE = 1024
"""From this Q on, singular values below float64 come from the eigenvalues of a Gram matrix: a third of the time of an
SVD, measured at 2048 x 2048 on one core. Values under 3e-4 of the largest are then inexact, which no threshold sees."""

_BISECTIONS = 60


@dataclass(frozen=True)
class Allocation:
    """A rank for every matrix."""

    ranks: dict[str, int]
    """Kept rank by name, between 1 and Q."""
    threshold: float | None
    """The cut on the normalised values where there is one: values below it are dropped."""


def singular_values(matrix_MN: Tensor, name: str = "matrix") -> Tensor:
    """Return the singular values of a matrix in descending order, as float64.

    Args:
        matrix_MN: (M, N) float, any dtype; not modified.
        name: for the message.
    Returns:
        (Q,) float64 on the CPU.
    Raises:
        NumericsError: if an entry is NaN or infinite; names the matrix and counts the entries.
    Cost: an SVD without vectors; M*N + Q*Q elements of temporaries.
    """
    require_finite(matrix_MN, name)
    wide = matrix_MN if matrix_MN.dtype == torch.float64 else matrix_MN.float()
    if min(wide.shape) == 0:
        return torch.zeros(0, dtype=torch.float64)
    with one_thread(wide.device):
        if wide.dtype == torch.float64 or min(wide.shape) < GRAM_SIDE:
            return torch.linalg.svdvals(wide).double().cpu()
        squares = torch.linalg.eigvalsh(gram(wide))
    return squares.flip(0).clamp_min(0).double().sqrt().cpu()


def gram(matrix_MN: Tensor) -> Tensor:
    """Return the Gram matrix of the shorter side, (Q, Q)."""
    return matrix_MN @ matrix_MN.mT if matrix_MN.shape[0] <= matrix_MN.shape[1] else matrix_MN.mT @ matrix_MN


def require_finite(matrix: Tensor, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NumericsError: names the matrix and counts the entries.
    """
    bad = int((~torch.isfinite(matrix)).sum())
    if bad:
        raise NumericsError(
            f"spectrum: '{name}' {tuple(matrix.shape)} holds {bad} entries that are NaN or infinite; expected finite "
            "ones. Repair the checkpoint, or leave the module out by exclude_modules."
        )


def normalize(spectrum: Tensor) -> Tensor | None:
    """Scale singular values to [0, 1] by their smallest and largest; None if all are (nearly) equal.

    Example:
        >>> normalize(torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0], dtype=torch.float64)).tolist()
        [1.0, 0.5, 0.2, 0.1, 0.0]
    """
    spectrum = spectrum.double()
    if len(spectrum) < 2:
        return None
    span = spectrum[0] - spectrum[-1]
    # Rounding alone spreads the values of a multiple of an orthogonal matrix: by 1e-6 in float32.
    if float(span) <= 1e-5 * float(spectrum[0]):
        return None
    return (spectrum - spectrum[-1]) / span


def is_low_rank_component(rank: int, full_rank: int) -> bool:
    """Tell whether a matrix that keeps `rank` of `full_rank` ranks is an LRC: half or more are gone."""
    return full_rank > 0 and 1 - rank / full_rank > LRC_SHARE


def reduction(ranks: Mapping[str, int], full_ranks: Mapping[str, int]) -> float:
    """Return the share of ranks that are gone over all matrices; it counts ranks and not parameters."""
    total = sum(full_ranks.values())
    return 1 - sum(ranks[name] for name in full_ranks) / total if total else 0.0


def threshold_ranks(spectra: Spectra, threshold: float) -> Allocation:
    """Keep the values whose min-max normalisation is not below a threshold.

    Args:
        spectra: of all matrices; one without any spread keeps its full rank.
        threshold: in (0, 1].
    """
    ranks = {}
    for name, spectrum in spectra.items():
        scaled = normalize(spectrum)
        ranks[name] = len(spectrum) if scaled is None else len(scaled) - int((scaled < threshold).sum())
    return Allocation(ranks, threshold)


def quantile_ranks(spectra: Spectra, rank_reduction: float) -> Allocation:
    """Choose the threshold of `threshold_ranks` as a quantile, so that exactly the wished share of ranks goes.

    Exactly floor(rank_reduction * sum of Q) ranks go. Values that tie at the cut go in the order of names and indices;
    the threshold alone gives the same ranks only up to such ties.

    Args:
        spectra: of all matrices.
        rank_reduction: share of ranks to drop, in (0, 1).
    Raises:
        ConfigError: if the share is out of range or leaves a matrix without a rank.
    Cost: one sort of all values.
    """
    pool = {name: scaled for name, spectrum in spectra.items() if (scaled := normalize(spectrum)) is not None}
    return _pooled(pool, spectra, rank_reduction)


def energy_ranks(spectra: Spectra, rank_reduction: float) -> Allocation:
    """Drop the values with the smallest share in the energy of their matrix, sigma^2 / sum of sigma^2.

    Args:
        spectra: of all matrices, or of matrices times a root of their inputs' second moments.
        rank_reduction: share of ranks to drop, in (0, 1).
    Raises:
        ConfigError: as for `quantile_ranks`.
    """
    return _pooled({name: energy_shares(spectrum) for name, spectrum in spectra.items()}, spectra, rank_reduction)


def uniform_ranks(spectra: Spectra, rank_reduction: float) -> Allocation:
    """Drop the same share of ranks in every matrix; the rounding is dealt out so that the total is exact.

    Raises:
        ConfigError: as for `quantile_ranks`.
    """
    _check_share(rank_reduction)
    full = {name: len(spectrum) for name, spectrum in spectra.items()}
    total = math.floor(rank_reduction * sum(full.values()))
    pruned = {name: min(math.floor(rank_reduction * q), q - 1) for name, q in full.items()}
    missing = total - sum(pruned.values())
    for name in sorted(full, key=lambda one: pruned[one] - rank_reduction * full[one]):
        if missing > 0 and pruned[name] < full[name] - 1:
            pruned[name] += 1
            missing -= 1
    return Allocation({name: q - pruned[name] for name, q in full.items()}, None)


def lrc_ranks(spectra: Spectra, rank_reduction: float) -> Allocation:
    """Choose the largest threshold at which the LRCs alone lose at most the wished share of all ranks.

    Matrices that are no LRC at that threshold keep their full rank. The share jumps where a matrix becomes an LRC, so
    what is reached may be less; read it by `reduction`.

    Args:
        spectra: of all matrices.
        rank_reduction: share of all ranks to drop, in (0, 1).
    Raises:
        ConfigError: if the share is out of range.
    """
    _check_share(rank_reduction)
    scaled = {name: values for name, spectrum in spectra.items() if (values := normalize(spectrum)) is not None}
    full = {name: len(spectrum) for name, spectrum in spectra.items()}
    total = sum(full.values())

    def ranks_at(threshold: float) -> dict[str, int]:
        ranks = dict(full)
        for name, values in scaled.items():
            kept = len(values) - int((values < threshold).sum())
            if is_low_rank_component(kept, full[name]):
                ranks[name] = kept
        return ranks

    candidates = torch.cat(list(scaled.values())).unique().tolist() if scaled else [1.0]
    low, high = 0, len(candidates) - 1  # at the smallest candidate, 0, nothing is dropped
    while low < high:
        middle = (low + high + 1) // 2
        if total - sum(ranks_at(candidates[middle]).values()) <= rank_reduction * total:
            low = middle
        else:
            high = middle - 1
    return Allocation(ranks_at(candidates[low]), candidates[low])


Cost = Callable[[str, np.ndarray], np.ndarray]
"""Cost of matrix `name` at each of some ranks, in any unit."""


def budget_ranks(spectra: Spectra, cost: Cost, budget: float, weights: Mapping[str, float] | None = None) -> Allocation:
    """Choose ranks that lose the least energy within a budget of parameters or bytes.

    The loss of a matrix at rank r is its weight times sum_{j>r} sigma_j^2. With a multiplier on the cost each matrix
    chooses for itself; the multiplier is bisected, and what is left over goes to the best single ranks.

    Args:
        spectra: of all matrices.
        cost: of a matrix at given ranks, at least 0; the full rank may be cheaper than a rank below it.
        budget: largest sum of the costs.
        weights: of the losses; None takes 1 / sum of sigma^2, which makes them relative.
    Raises:
        ConfigError: if even the cheapest ranks do not fit; names what is reachable.
    Cost: 60 passes over all values.
    """
    tails, costs = {}, {}
    for name, spectrum in spectra.items():
        squares = spectrum.double().square().numpy()
        weight = (1 / max(squares.sum(), 1e-300)) if weights is None else weights[name]
        tails[name] = weight * (np.cumsum(squares[::-1])[::-1] - squares)  # loss at the ranks 1..Q
        costs[name] = np.asarray(cost(name, np.arange(1, len(squares) + 1)), dtype=np.float64)
    least = sum(float(values.min()) for values in costs.values())
    if least > budget:
        raise ConfigError(
            f"spectrum: budget={budget:,.0f} is below what rank 1 everywhere takes; expected at least {least:,.0f}. "
            "Raise the budget, or select more modules."
        )

    def choose(multiplier: float) -> dict[str, int]:
        return {name: int(np.argmin(tails[name] + multiplier * costs[name])) for name in tails}

    def spent(chosen: Mapping[str, int]) -> float:
        return sum(float(costs[name][index]) for name, index in chosen.items())

    low, high = 0.0, 1e-12
    while spent(choose(high)) > budget:
        high *= 8
    best = choose(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if spent(chosen := choose(middle)) > budget:
            low = middle
        else:
            high, best = middle, chosen
    _spend_rest(best, tails, costs, budget - spent(best))
    return Allocation({name: index + 1 for name, index in best.items()}, None)


def threshold_budget_ranks(spectra: Spectra, cost: Cost, budget: float) -> Allocation:
    """Choose the largest set of ranks of `threshold_ranks` whose cost fits a budget; see `budget_ranks`."""
    scaled = [values.numpy() for s in spectra.values() if (values := normalize(s)) is not None]
    candidates = np.unique(np.concatenate(scaled)) if scaled else np.ones(1)

    def spent(allocation: Allocation) -> float:
        return sum(float(cost(name, np.array([rank]))[0]) for name, rank in allocation.ranks.items())

    low, high = 0, len(candidates) - 1
    least = spent(threshold_ranks(spectra, float(candidates[high])))
    if least > budget:
        raise ConfigError(
            f"spectrum: budget={budget:,.0f} is below what the largest threshold takes; expected at least {least:,.0f}."
            " Raise the budget, or choose allocation='energy'."
        )
    while low < high:
        middle = (low + high) // 2
        if spent(threshold_ranks(spectra, float(candidates[middle]))) <= budget:
            high = middle
        else:
            low = middle + 1
    return threshold_ranks(spectra, float(candidates[low]))


def explained_rank(spectrum: Tensor, explained: float, criterion: str = "energy") -> int:
    """Return the least rank whose values explain a share of a spectrum; 0 for a spectrum of zeros.

    Args:
        spectrum: (Q,) descending, zeros included where the variance form needs them.
        explained: share in (0, 1].
        criterion: "energy": sum of squares up to the rank over that of all, at least `explained`. "variance": one minus
            the variance (about the mean, unbiased) of the values with the first ones set to zero, over the variance of
            all, more than `explained`; the form of InRank's official code.
    Source: InRank, arXiv 2306.11250.
    Example:
        >>> explained_rank(torch.tensor([3.0, 2.0, 1.0]), 0.9), explained_rank(torch.tensor([3.0, 2.0, 1.0]), 0.95)
        (2, 3)
    """
    squares = spectrum.double().square()
    if float(squares.sum()) == 0:
        return 0
    if criterion == "energy":
        shares = squares.cumsum(0) / squares.sum()
        # Rounding may leave the last sum a hair below 1.
        return min(len(squares), int((shares < explained - 1e-15).sum()) + 1)
    ratios = variance_ratios(spectrum)
    return min(len(squares), int((ratios <= explained).sum()) + 1)


def variance_ratios(spectrum: Tensor) -> Tensor:
    """Return the explained share in the variance form, at the ranks 1..Q; see `explained_rank`."""
    values = spectrum.double()
    count = len(values)
    squares, sums = values.square(), values
    left_squares = squares.sum() - squares.cumsum(0)
    left_sums = sums.sum() - sums.cumsum(0)
    tails = left_squares - left_sums.square() / count
    total = squares.sum() - sums.sum().square() / count
    return 1 - (tails / total).clamp_min(0) if float(total) > 0 else torch.ones_like(values)


def energy_shares(spectrum: Tensor) -> Tensor:
    """Return sigma^2 / sum of sigma^2; zeros for a matrix of zeros."""
    squares = spectrum.double().square()
    return squares / squares.sum().clamp_min(1e-300)


def _check_share(rank_reduction: float) -> None:
    if not 0 < rank_reduction < 1:
        raise ConfigError(
            f"spectrum: rank_reduction={rank_reduction} is out of range; expected 0 < rank_reduction < 1. It is the "
            "share of all ranks that is dropped: set it to 0.5, for example."
        )


def _pooled(pool: Mapping[str, Tensor], spectra: Spectra, rank_reduction: float) -> Allocation:
    """Drop the smallest of all values in the pool, the first of each matrix never."""
    _check_share(rank_reduction)
    full = {name: len(spectrum) for name, spectrum in spectra.items()}
    count = math.floor(rank_reduction * sum(full.values()))
    names = sorted(name for name in pool if len(pool[name]) > 1)
    values = np.concatenate([pool[name][1:].numpy() for name in names] or [np.zeros(0)])
    owners = np.concatenate([np.full(len(pool[name]) - 1, i) for i, name in enumerate(names)] or [np.zeros(0, int)])
    if count > len(values):
        raise ConfigError(
            f"spectrum: rank_reduction={rank_reduction} would drop {count} of {sum(full.values())} ranks, but only "
            f"{len(values)} can go, as each matrix keeps one and those without any spread keep all; expected at most "
            f"{len(values) / max(1, sum(full.values())):.4f}. Lower it."
        )
    order = np.argsort(values, kind="stable")  # ties: by name, then by index, the order of the concatenation
    pruned = np.bincount(owners[order[:count]], minlength=len(names)) if count else np.zeros(len(names), int)
    ranks = full | {name: full[name] - int(pruned[i]) for i, name in enumerate(names)}
    edges = [float(values[order[i]]) for i in (count - 1, count) if 0 <= i < len(values)]
    return Allocation(ranks, sum(edges) / len(edges) if edges else None)


def _spend_rest(
    chosen: dict[str, int], tails: Mapping[str, np.ndarray], costs: Mapping[str, np.ndarray], rest: float
) -> None:
    """Add to single matrices what still fits, best gain for its cost first."""
    while True:
        best: tuple[float, str, int] | None = None
        for name, index in chosen.items():
            extra = costs[name][index + 1 :] - costs[name][index]
            gains = tails[name][index] - tails[name][index + 1 :]
            fits = np.flatnonzero((extra <= rest) & (gains > 0))
            if len(fits):
                rate = gains[fits] / np.maximum(extra[fits], 1e-9)
                at = int(np.argmax(rate))
                if best is None or rate[at] > best[0]:
                    best = (float(rate[at]), name, index + 1 + int(fits[at]))
        if best is None:
            return
        rest -= float(costs[best[1]][best[2]] - costs[best[1]][chosen[best[1]]])
        chosen[best[1]] = best[2]
