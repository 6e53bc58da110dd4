"""Inner rules: from a gradient and its moments to a direction.

A rule sees plain tensors of one shape (a whole weight, a flat slice of one, or a low-rank core: it cannot tell) and
updates the moments in place. `LowRankOptimizer` decides what is fed in and where the direction goes.
Shapes: A rows, B columns of what is fed in.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featherweight.linalg.orthonormal import newton_schulz
from featherweight.registry import Registry
from featherweight.simulated import device_kind


class Moment(NamedTuple):
    """One state tensor of a rule."""

    shape: tuple[int, ...]
    is_signed: bool
    may_quantize: bool = True
    """False for a few numbers that stand for many."""


class Rule(ABC):
    """Turns a gradient into a direction; the weight moves by ``-lr * direction``."""

    is_elementwise = False
    """Whether each element's direction depends on that element alone, so that a tensor may come in slices."""
    full_rank_rule = "adamw"
    """Name of the rule that parameters without a subspace follow."""
    vector_rule: str | None = None
    """Name of the rule that those of them with less than two axes follow; None for the same."""
    words = "PyTorch operations"
    """What reports call the way in which it is computed."""

    def moments(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> dict[str, Moment]:
        """Return the state tensors for a gradient of `shape`; one moment if a rule does not say otherwise."""
        return {"exp_avg": Moment(shape, True)}

    @abstractmethod
    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """Update `moments` in place and return the direction.

        Args:
            grad: any shape, float32 or float64. Not modified.
            moments: one tensor of the dtype of `grad` for each name of `self.moments`.
            step: number of this step, from 1.
            group: the parameter group with the rule's options.
        Returns:
            New tensor of the shape of `grad`.
        """


class AdamWRule(Rule):
    """Adam's direction; decay is decoupled and happens where the weight is written.

    ``m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2``
    ``eps_mode="torch"``:    ``m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)``
    ``eps_mode="official"``: ``sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)``, as galore-torch computes it: its
    eps acts about 30 times more strongly at the first step.

    Source: Loshchilov and Hutter, arXiv 1711.05101.
    """

    is_elementwise = True

    def moments(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> dict[str, Moment]:
        """See `Rule.moments`."""
        return {"exp_avg": Moment(shape, True), "exp_avg_sq": Moment(shape, False)}

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`."""
        beta1, beta2 = group["betas"]
        exp_avg, exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction1, correction2_sqrt = 1 - beta1**step, (1 - beta2**step) ** 0.5
        denominator = root(exp_avg_sq)
        if group["eps_mode"] == "torch":
            denominator.div_(correction2_sqrt).add_(group["eps"])
            return torch.div(exp_avg, denominator, out=denominator).div_(correction1)
        denominator.add_(group["eps"])
        return torch.div(exp_avg, denominator, out=denominator).mul_(correction2_sqrt / correction1)


def root(values: Tensor) -> Tensor:
    """Return the square roots of values that are not negative, as a new tensor.

    On a CPU by way of the inverse root, with an error of up to 1.5 units in the last place: the library behind torch's
    square root takes 4 times as long for zeros, of which the second moments of an embedding are full, and 30 times for
    subnormal numbers.
    """
    return values.rsqrt().reciprocal_() if device_kind(values.device) == "cpu" else values.sqrt()


class SGDRule(Rule):
    """SGD with heavy-ball momentum ``m = b1 m + g``, direction ``m`` (``b1 = betas[0]``; 0 is plain SGD).

    Linear in the gradient, so a full-rank subspace with ``scale=1`` must reproduce SGD exactly: the proof of the
    projection.
    """

    is_elementwise = True
    full_rank_rule = "sgd"

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`."""
        return moments["exp_avg"].mul_(group["betas"][0]).add_(grad).clone()


class AdafactorRule(Rule):
    """Adam with a second moment that is kept as one row and one column of means.

    With ``b2_t = 1 - t^-0.8`` and ``u = g^2 + 1e-30``, for a matrix (A, B):
    ``row = b2_t row + (1 - b2_t) mean_B(u);  col = b2_t col + (1 - b2_t) mean_A(u)``
    ``d = g / sqrt(row col / mean(row));  d <- d / max(1, rms(d));  m = b1 m + (1 - b1) d``, direction ``m``.
    ``betas[0] = 0`` keeps no first moment and takes ``d``. Tensors that are no matrices keep a full second moment.
    `betas[1]` and `eps` are not used.

    Source: Shazeer and Stern, arXiv 1804.04235, Algorithms 4 and 5, with the constants of its section 8. Differs from
        the paper: no relative step sizes, the rate is lr.
    """

    full_rank_rule = "adafactor"
    DECAY_POWER, TINY, RMS_LIMIT = 0.8, 1e-30, 1.0

    def moments(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> dict[str, Moment]:
        """See `Rule.moments`."""
        first = {"exp_avg": Moment(shape, True)} if group["betas"][0] > 0 else {}
        if len(shape) != 2:
            return {**first, "exp_avg_sq": Moment(shape, False)}
        row, col = Moment(shape[:1], False, False), Moment(shape[1:], False, False)
        return {**first, "exp_avg_sq_row": row, "exp_avg_sq_col": col}

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`."""
        weight = step**-self.DECAY_POWER
        squares = grad.square().add_(self.TINY)
        if "exp_avg_sq" in moments:
            direction = grad * moments["exp_avg_sq"].lerp_(squares, weight).rsqrt()
        else:
            row, col = moments["exp_avg_sq_row"], moments["exp_avg_sq_col"]
            row.lerp_(squares.mean(dim=1), weight)
            col.lerp_(squares.mean(dim=0), weight)
            direction = grad * (row / row.mean()).rsqrt().unsqueeze(1) * col.rsqrt()
        if direction.numel():
            rms = torch.linalg.vector_norm(direction) / direction.numel() ** 0.5
            direction.div_(rms.div_(self.RMS_LIMIT).clamp_min_(1))
        if "exp_avg" in moments:
            return moments["exp_avg"].lerp_(direction, 1 - group["betas"][0]).clone()
        return direction


class MuonRule(Rule):
    """Momentum whose singular values are all set to about one.

    ``m = momentum m + g;  d = NS(m)``, direction ``0.2 sqrt(max(A, B)) d``: the root mean square of a full-rank
    direction is about that of AdamW's, so AdamW's learning rates fit. NS is five Newton-Schulz steps ``X <- a X + (b
    A + c A^2) X, A = X X^T``, from ``X = m / ||m||``, with (a, b, c) = (3.4445, -4.7750, 2.0315).

    A rule for the cores of matrices; all other parameters follow AdamW.

    Cost: 15 products of the core with its smaller Gram matrix a step.
    Source: Jordan et al., Muon, 2024; factor 0.2 sqrt(max(A, B)): Liu et al., arXiv 2502.16982, section 2.2.
    """

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`."""
        exp_avg = moments["exp_avg"].mul_(group["momentum"]).add_(grad)
        return orthogonalize(exp_avg).mul_(0.2 * max(grad.shape) ** 0.5)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of a matrix towards one by Newton-Schulz steps.

    Args:
        matrix: (A, B) float32 or float64. Not modified.
        steps: five bring singular values above 0.01 of the norm into [0.68, 1.13].
    Returns:
        New (A, B) tensor; zeros for zeros.
    Source: Jordan et al., Muon, 2024.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    current = matrix.mT if is_tall else matrix
    tiny = torch.finfo(matrix.dtype).tiny
    current = current / current.abs().max().clamp_min(tiny)  # first, so that no square under- or overflows
    current = current / torch.linalg.vector_norm(current).clamp_min(tiny)
    current = newton_schulz(current, (3.4445, -4.7750, 2.0315), steps)
    return current.mT if is_tall else current


class ScaleRule(Rule):
    """The gradient, or its momentum ``m = b m + (1 - b) g``, with rows or columns of root mean square 1.

    ``b = momentum`` of the group, 0 for none and no state; `normalize` says "rows" or "columns". Vectors follow AdamW.

    Source: Glentis et al., arXiv 2506.16659, as in the official code: no bias correction, roots of mean squares of
        1e-8 at least.
    """

    full_rank_rule = "scale"
    vector_rule = "adamw"
    words = "tiles of rows"
    SMALLEST = 1e-8

    def moments(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> dict[str, Moment]:
        """See `Rule.moments`."""
        return {"exp_avg": Moment(shape, True)} if group["momentum"] else {}

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`; `grad` is a matrix. Steps go tile by tile (`step/rows.py`)."""
        if "exp_avg" in moments:
            grad = moments["exp_avg"].lerp_(grad, 1 - group["momentum"])
        axis = 1 if group["normalize"] == "rows" else 0
        return grad / self.rms(grad.square().sum(axis, keepdim=True), grad.shape[axis])

    def rms(self, squares: Tensor, count: int) -> Tensor:
        """Return the root of a mean from the sums of `count` squares; written over them."""
        return squares.div_(count).sqrt_().clamp_min_(self.SMALLEST)


class ComplexAdamWRule(Rule):
    """Adam on pairs of reals with one second moment for each complex number: ``v = b2 v + (1 - b2) |g|^2``.

    A step then turns with the gradient's phase, has modulus about 1, and does not depend on the phases of basis
    columns. torch.optim takes a complex number for two reals: its steps have moduli up to sqrt(2), so its learning
    rates are about sqrt(2) times smaller for the same step.
    """

    words = "PyTorch operations, complex"

    def moments(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> dict[str, Moment]:
        """See `Rule.moments`; `shape` has the axis of pairs."""
        return {"exp_avg": Moment(shape, True), "exp_avg_sq": Moment(shape[:-1], False)}

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`; `grad` and the first moment are (.., 2), the second moment (..)."""
        beta1, beta2 = group["betas"]
        exp_avg, exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).add_(grad.square().sum(dim=-1), alpha=1 - beta2)
        correction1, correction2_sqrt = 1 - beta1**step, (1 - beta2**step) ** 0.5
        denominator = exp_avg_sq.sqrt()
        if group["eps_mode"] == "torch":
            denominator.div_(correction2_sqrt).add_(group["eps"]).mul_(correction1)
        else:
            denominator.add_(group["eps"]).mul_(correction1 / correction2_sqrt)
        return exp_avg / denominator.unsqueeze(-1)


rules: Registry[Rule] = Registry("rule")
rules.register("adamw", AdamWRule())
rules.register("sgd", SGDRule())
rules.register("adafactor", AdafactorRule())
rules.register("muon", MuonRule())
rules.register("scale", ScaleRule())
