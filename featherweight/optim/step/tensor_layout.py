"""What is decided once for a tensor and for a complex parameter; the ranks of a tensor perhaps with its first gradient.

Everything else about a parameter follows from its shape. Ranks that follow the spectrum of the first gradient
(`rank="auto"`) do not, so a plan is open until then: its shapes and bytes are the largest that `rank_budget` allows.
What was decided stands in the state as `ranks`, so that a resumed run decides nothing anew.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from featherweight.linalg.tucker_ranks import greedy_ranks
from featherweight.optim.policies.rules import ComplexAdamWRule, Rule, rules
from featherweight.optim.step.layout import DenseLayout, Layout, State, compute_dtype
from featherweight.optim.tucker.plan import TensorPlan, plan_tensor
from featherweight.quant.storage import basis_storage_for, storage_for


@dataclass(frozen=True, kw_only=True)
class _PairLayout(Layout):
    """A parameter whose numbers may be pairs of reals."""

    plan: TensorPlan
    """How it is viewed and projected."""

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the integer counters."""
        return self.plan.counters

    def inner_rule(self, group: Mapping[str, Any]) -> Rule:
        """Return the rule for its numbers."""
        name = "sgd" if group["rule"] == "sgd" else "adamw"
        return ComplexAdamWRule() if self.plan.by_modulus and name == "adamw" else rules.get(name)


@dataclass(frozen=True, kw_only=True)
class ComplexLayout(DenseLayout, _PairLayout):
    """A complex parameter that keeps moments of its own size."""


@dataclass(frozen=True, kw_only=True)
class TensorLayout(_PairLayout):
    """A tensor that is projected."""

    @property
    def rank(self) -> int:
        """The largest rank of a mode."""
        return max(self.plan.ranks or self.plan.shape)

    @property
    def kind(self) -> str:
        """Word for reports."""
        return f"{self.plan.kind}, {self.plan.share:.1%}"

    def basis_shapes(self) -> dict[str, tuple[int, ...]]:
        """State name and shape of each basis."""
        return self.plan.factor_shapes()

    def other_bytes(self) -> int:
        """Bytes of indices, of the captured energy, and of ranks that a gradient has decided."""
        return self.plan.other_bytes()

    def create_state(self, state: State, device: torch.device) -> None:
        """Add the zero state of this parameter."""
        super().create_state(state, device)
        self.plan.create_others(state, device)

    def with_ranks(self, ranks: tuple[int, ...], group: Mapping[str, Any]) -> Self:
        """Return the layout with decided ranks.

        Moments are stored as planned for the budget, not anew by the size of the core: below some size moments stay in
        32 bits, and a core just below it would take more bytes than the budget.
        """
        plan = replace(self.plan, ranks=ranks)
        return replace(self, plan=plan, moment_shapes=plan.moment_shapes(group))

    def settled(self, grad: Tensor, group: Mapping[str, Any]) -> Self:
        """Return the layout with the ranks of a first gradient.

        Args:
            grad: of the parameter's shape, finite. Not modified.
            group: options of the parameter group.
        Returns:
            The same layout, still open, if the gradient is zero: there is nothing to follow.
        Cost: see `greedy_ranks`.
        """
        plan = self.plan
        assert plan.budget is not None
        if not grad.any():
            return self
        return self.with_ranks(greedy_ranks(plan.tensor_of(grad, self.dtype), plan.budget, plan.spectral_modes), group)


def plan_pairs(
    name: str, parameter: Tensor, group: Mapping[str, Any], index: int
) -> TensorLayout | ComplexLayout | None:
    """Decide how a tensor, or a complex parameter, is treated; None for all others. Arguments as for `plan_step`."""
    plan = plan_tensor(name, parameter, group)
    if plan is None:
        return None
    shapes = plan.moment_shapes(group)
    shared: dict[str, Any] = {
        "name": name,
        "index": index,
        "shape": tuple(parameter.shape),
        "dtype": compute_dtype(parameter.dtype),
        "rule": group["rule"],
        "moments": {
            key: storage_for(group["state_bits"], signed=not key.endswith("_sq"), numel=math.prod(shape))
            for key, shape in shapes.items()
        },
        "moment_shapes": shapes,
        "plan": plan,
    }
    if plan.kind == "none":
        return ComplexLayout(**shared)
    # In 32 bits, as a tensor has few bases, unless `basis_bits` says else.
    return TensorLayout(**shared, basis=basis_storage_for(group["basis_bits"] or 32))
