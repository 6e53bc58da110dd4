"""Logistic regression on standardised features: the one classifier behind every tier.

Shapes: N rows, F features.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.guard.metrics import auroc

STRENGTHS = (3e-4, 3e-3, 3e-2)
"""Of the L2 penalty, per row: the best one by cross-validation is taken."""
USUAL = (3e-3,)
"""Where the choice is not worth its time."""
FOLDS = 5


@dataclass(frozen=True)
class Linear:
    """A linear score, larger for what ought to be refused."""

    mean: Tensor
    """(F,) float32"""
    std: Tensor
    """(F,) float32, above 0"""
    weight: Tensor
    """(F,) float32"""
    bias: Tensor
    """() float32"""

    def beside(self, other: "Linear") -> "Linear":
        """Return the sum of both scores, as a score of both features side by side."""
        names = ("mean", "std", "weight")
        mean, std, weight = (torch.cat([getattr(self, name), getattr(other, name)]) for name in names)
        return Linear(mean, std, weight, self.bias + other.bias)

    def __call__(self, features_NF: Tensor) -> Tensor:
        """Return (N,) float32 log-odds."""
        standard = (features_NF.to(self.mean) - self.mean) / self.std
        return (standard * self.weight).sum(dim=1) + self.bias


@dataclass(frozen=True)
class CrossFitted:
    """A score, and those of folds that had not seen a part of the rows."""

    score: Linear
    folds: tuple[Linear, ...]
    fold_N: Tensor
    """(N,) int64: which of them had not seen a row."""

    def held_out(self, features_NF: Tensor) -> Tensor:
        """Return (N,) float32: the scores of the rows that were fitted, by folds that had not seen them.

        Args:
            features_NF: of those rows, at the place of the fit or at an earlier one.
        """
        found = torch.empty(len(self.fold_N), dtype=torch.float32)
        for fold, score in enumerate(self.folds):
            inside = self.fold_N == fold
            found[inside] = score(features_NF[inside]).float()
        return found

    def beside(self, other: "CrossFitted") -> "CrossFitted":
        """Return the sum of both, fitted on the same rows, as a score of both features side by side."""
        assert bool((self.fold_N == other.fold_N).all()), "the same rows have the same folds"
        folds = tuple(one.beside(two) for one, two in zip(self.folds, other.folds, strict=True))
        return CrossFitted(self.score.beside(other.score), folds, self.fold_N)


def fit_linear(
    features_NF: Tensor,
    labels_N: Tensor,
    groups: list[str] | None = None,
    *,
    kinds: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Linear, Tensor]:
    """Return the score of `cross_fit`, and (N,) those of its rows by the folds that had not seen them."""
    found = cross_fit(features_NF, labels_N, groups, kinds=kinds, strengths=strengths)
    return found.score, found.held_out(features_NF)


def cross_fit(
    features_NF: Tensor,
    labels_N: Tensor,
    groups: list[str] | None = None,
    *,
    kinds: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> CrossFitted:
    """Fit a score, and choose its penalty by cross-validation.

    Args:
        features_NF: float.
        labels_N: 1 for what ought to be refused, 0 for the rest; both count equally, whatever their numbers.
        kinds: of the rows; see `row_weights`.
        groups: rows of one group are never in two folds; None: each row is a group of its own.
        strengths: of the penalty, among which cross-validation chooses.

    Raises:
        ConfigError: if features are not finite, or one class has fewer rows than there are folds.
    """
    if not bool(torch.isfinite(features_NF).all()):
        raise ConfigError(
            "guard calibrate: features are not finite; expected numbers. Check that the model gives finite logits for "
            "these prompts (bf16 instead of fp16 often helps)."
        )
    counts = [int((labels_N == label).sum()) for label in (0, 1)]
    if min(counts) < FOLDS:
        raise ConfigError(
            f"guard calibrate: rows={min(counts)} of one class are too few to fit a score; expected {FOLDS} or more. "
            "Add prompts."
        )
    fold_N, weights_N = _folds(labels_N, groups), row_weights(labels_N, kinds)
    best: tuple[float, float, CrossFitted] | None = None
    for strength in strengths:
        folds = [
            _fit(features_NF[inside], labels_N[inside], weights_N[inside], strength)
            for inside in (fold_N != fold for fold in range(FOLDS))
        ]
        found = CrossFitted(folds[0], tuple(folds), fold_N)
        held_out = found.held_out(features_NF)
        quality = auroc(held_out[labels_N == 1], held_out[labels_N == 0])
        if best is None or quality > best[0] + 1e-9:
            best = (quality, strength, found)
    assert best is not None
    return replace(best[2], score=_fit(features_NF, labels_N, weights_N, best[1]))


def row_weights(labels_N: Tensor, kinds: Sequence[str] | None) -> Tensor:
    """Return how much each row counts: both labels alike, and a kind of a label by the root of its rows.

    The few rows that look like the other class are the hard ones, and would count for little otherwise; counting as
    much as all others, they would cost what they resemble.

    Example:
        >>> row_weights(torch.tensor([1, 0, 0, 0, 0, 0]), ["a", "b", "b", "b", "b", "c"]).tolist()[1::4]
        [0.08333333333333333, 0.16666666666666666]
    """
    names = list(zip(labels_N.tolist(), kinds or [""] * len(labels_N), strict=True))
    counts = Counter(names)
    weights = torch.tensor([counts[name] ** -0.5 for name in names], dtype=torch.float64)
    for label in (0, 1):
        here = labels_N == label
        weights[here] *= 0.5 / weights[here].sum()
    return weights


def _fit(features_NF: Tensor, labels_N: Tensor, weights_N: Tensor, strength: float) -> Linear:
    features = features_NF.double()
    mean, std = features.mean(dim=0), features.std(dim=0)
    # What is the same in all rows says nothing; of hashed words, that is most of them.
    varies = std > 1e-6 * (1 + mean.abs())
    std = torch.where(varies, std, torch.ones_like(std))
    standard, target = ((features - mean) / std)[:, varies], labels_N.double()
    weights = weights_N / weights_N.sum()
    # Standardised features of width F have inner products of order F: the penalty is measured against those.
    penalty = strength * math.sqrt(standard.shape[1])
    weight = torch.zeros(standard.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = standard @ weight + bias
        loss = (weights * torch.nn.functional.softplus(torch.where(target == 1, -logits, logits))).sum()
        loss = loss + 0.5 * penalty * (weight**2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    found = torch.zeros(features.shape[1])
    found[varies] = weight.detach().float()
    return Linear(mean.float(), std.float(), found, bias.detach().float())


def _folds(labels_N: Tensor, groups: list[str] | None) -> Tensor:
    """Return the fold of each row; each class is spread over all folds, as far as its groups allow it."""
    fold_N = torch.empty(len(labels_N), dtype=torch.int64)
    for label in (0, 1):
        rows = (labels_N == label).nonzero().squeeze(1).tolist()
        names = [str(row) if groups is None else groups[row] for row in rows]
        sizes = [0] * FOLDS
        chosen: dict[str, int] = {}
        for name in sorted(dict.fromkeys(names), key=lambda name: (-names.count(name), name)):
            chosen[name] = sizes.index(min(sizes))
            sizes[chosen[name]] += names.count(name)
        for row, name in zip(rows, names, strict=True):
            fold_N[row] = chosen[name]
    return fold_N
