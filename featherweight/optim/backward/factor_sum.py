"""The gradient of a linear layer that is kept as its factors until a step by rows multiplies them out, tile by tile."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.optim.step.dense import DenseStep
from featherweight.optim.step.layout import Member
from featherweight.tiles import tiles

TILE_ROWS = 256


def joined(first: OuterProduct | None, second: OuterProduct) -> OuterProduct:
    """Return the sum of two gradients of one weight: their factors side by side, exactly."""
    if first is None:
        return second
    return OuterProduct(torch.cat([first.left, second.left]), torch.cat([first.right, second.right]))


class FactorSum:
    """The factors of the only gradient of a step; see `StepSum`.

    Args:
        step: of a parameter for which `takes_factors` holds.
        member: the parameter.
        measures_norm: whether the norm of the gradient is asked for, which costs its products once more.
    """

    def __init__(self, step: DenseStep, member: Member, measures_norm: bool) -> None:
        self.step, self.member, self.measures_norm = step, member, measures_norm
        self.factors: OuterProduct | None = None

    def add(self, grad: Gradient) -> None:
        """See `StepSum.add`; its factors alone are taken."""
        assert isinstance(grad, OuterProduct)
        self.factors = joined(self.factors, grad)

    def squared_norm(self) -> float:
        """See `StepSum.squared_norm`; 0 for factors that can be used where nobody asks for their norm."""
        assert self.factors is not None
        if not self.factors.is_finite():
            return float("nan")
        if not self.measures_norm:
            return 0.0
        total = torch.zeros((), dtype=torch.float64, device=self.factors.device)
        for start, stop in tiles(self.factors.shape[0], TILE_ROWS):
            total += torch.linalg.vector_norm(self.factors.rows(start, stop).dense()).double().square()
        return float(total)

    def shared_tensors(self) -> Sequence[Tensor]:
        """See `StepSum.shared_tensors`: factors of one process are never exchanged."""
        return []

    def update_(self, factor: float) -> int:
        """See `StepSum.update_`."""
        assert self.factors is not None
        if not self.factors.is_finite():
            return 1
        left = self.factors.left if factor == 1.0 else self.factors.left * factor
        self.step.step_by_rows(self.member, OuterProduct(left, self.factors.right))
        increment_version(self.member.parameter)
        return 0

    def tensors(self) -> Iterable[Tensor]:
        """See `StepSum.tensors`."""
        return () if self.factors is None else (self.factors.left, self.factors.right)
