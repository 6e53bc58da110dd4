"""The step of a parameter that is projected as a tensor, the sum of its cores, and the step of a complex parameter."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.optim import state as states
from featherweight.optim.step.dense import FullSum
from featherweight.optim.step.layout import Stored
from featherweight.optim.step.projected_tensor import SLICE_NUMBERS, ProjectedTensor, write_direction_
from featherweight.optim.step.step import Group, Member, Step, StepSum, Summing, Together
from featherweight.optim.step.tensor_layout import ComplexLayout, TensorLayout
from featherweight.optim.step.weight_update import (
    copy_back,
    rounding_of,
    weight_of,
)
from featherweight.tiles import tiles


class TensorSum:
    """The core, and the sparse entries, of the gradients of one tensor, summed over micro-batches.

    A due refresh takes the gradient of the first micro-batch: the sum itself never exists.

    Args:
        step: of the parameter.
        member: the parameter.
        tensor: what its step needs.
    """

    def __init__(self, step: Step, member: Member, tensor: ProjectedTensor) -> None:
        self.step, self.member, self.tensor = step, member, tensor
        self.rounding = rounding_of(member.group, tensor.layout.index, tensor.counter("step") + 1)
        self.core: Tensor | None = None
        self.sparse: Tensor | None = None

    def add(self, grad: Tensor) -> None:
        """See `StepSum.add`."""
        if self.core is None and bool(grad.isfinite().all()):
            self.tensor.refresh(grad)
            self.tensor.store_carried(self.rounding)
        core, sparse = self.tensor.project(grad)
        # Contiguous, as backends of torch.distributed ask for it.
        self.core = core.contiguous() if self.core is None else self.core.add_(core)
        if sparse is not None:
            self.sparse = sparse if self.sparse is None else self.sparse.add_(sparse)

    def squared_norm(self) -> float:
        """Return the squared norm of what is kept: the part outside of both branches is left out."""
        kept = [torch.linalg.vector_norm(one).double().square() for one in self.tensors()]
        return float(torch.stack(kept).sum())

    def shared_tensors(self) -> Sequence[Tensor]:
        """See `StepSum.shared_tensors`."""
        return [self.tensor.plan.pairs(one) for one in self.tensors()]

    def update_(self, factor: float) -> int:
        """See `StepSum.update_`."""
        assert self.core is not None
        if not all(bool(one.isfinite().all()) for one in self.tensors()):
            return 1
        sparse = None if self.sparse is None else self.sparse * factor
        weight = weight_of(self.member.parameter)
        assert isinstance(weight, Tensor)
        self.tensor.update_(weight, self.core * factor, sparse, self.rounding)
        copy_back(self.member.parameter, weight)
        self.step.ran = self.tensor.layout.inner_rule(self.member.group).words
        return 0

    def tensors(self) -> Iterable[Tensor]:
        """See `StepSum.tensors`."""
        return [one for one in (self.core, self.sparse) if one is not None]


class TensorStep(Step):
    """Refresh, projection mode by mode, inner rule on core and sparse branch, and write."""

    layout: TensorLayout
    matrix_count = 1

    # ---- state

    def restore(self, state: states.State, group: Group, dtype: torch.dtype) -> None:
        """See `Step.restore`: the ranks that a state has, if they fit the tensor."""
        plan = self.layout.plan
        if plan.is_open and "ranks" in state:
            ranks = tuple(state["ranks"].tolist())
            if len(ranks) == len(plan.shape) and all(1 <= r <= n for r, n in zip(ranks, plan.shape, strict=True)):
                self.layout = self.layout.with_ranks(ranks, group)

    def waits_for_gradient(self) -> bool:
        """See `Step.waits_for_gradient`: ranks that follow the spectrum of the first one."""
        return self.layout.plan.is_open

    # ---- update

    def step(
        self, member: Member, grad: Tensor, is_used: list[bool] | None = None, together: Together | None = None
    ) -> None:
        """See `Step.step`."""
        if self.layout.plan.is_open:
            self.layout = self.layout.settled(grad, member.group)
            if self.layout.plan.is_open:
                return  # nothing to follow, and no moments that could move
            self.create_state(member)
        tensor, weight = self._tensor(member), weight_of(member.parameter)
        assert isinstance(weight, Tensor)
        rounding = rounding_of(member.group, self.layout.index, tensor.counter("step") + 1)
        tensor.refresh(grad)
        tensor.update_(weight, *tensor.project(grad), rounding)
        copy_back(member.parameter, weight)
        self.ran = self.layout.inner_rule(member.group).words

    def begin_sum(self, member: Member, grad: Any, how: Summing) -> StepSum:
        """See `Step.begin_sum`.

        Ranks that follow a gradient wait for a whole one. Bases that are due must be those of all processes: they are
        fitted to the mean of the whole gradients, as an ordinary step fits them; between refreshes cores are all that
        is exchanged.
        """
        if self.layout.plan.is_open or (how.is_shared and self._is_due(member.state)):
            return FullSum(self, member)
        return TensorSum(self, member, self._tensor(member))

    @staticmethod
    def _is_due(state: states.State) -> bool:
        step, due = (states.read_counter(state, name, None) for name in ("step", "next_refresh")) if state else (0, 0)
        return step >= due

    def sum_bytes(self, estimates_norm: bool) -> int | None:
        """See `Step.sum_bytes`."""
        return self.layout.plan.sum_bytes(self.layout.dtype)

    def _tensor(self, member: Member) -> ProjectedTensor:
        if not member.state:
            self.create_state(member)
        return ProjectedTensor(self.layout, member.state, member.group, member.position)


class ComplexStep(Step):
    """The step of a complex parameter that keeps moments of its own size, in slices of pairs."""

    layout: ComplexLayout

    def step(
        self, member: Member, grad: Tensor, is_used: list[bool] | None = None, together: Together | None = None
    ) -> None:
        """See `Step.step`."""
        if not member.state:
            self.create_state(member)
        layout, state, group = self.layout, member.state, member.group
        weight = weight_of(member.parameter)
        assert isinstance(weight, Tensor)
        step = states.read_counter(state, "step", None) + 1
        states.write_counter(state, "step", None, step)
        rounding, rule = rounding_of(group, layout.index, step), layout.inner_rule(group)
        weight_P2 = (torch.view_as_real(weight) if weight.is_complex() else weight).view(-1, 2)
        grad_P2 = layout.plan.pairs(grad).reshape(-1, 2)
        stored = {name: states.parts_of(state, name, None) for name in layout.moments}
        widths = {name: 1 if name == "exp_avg_sq" and layout.plan.by_modulus else 2 for name in layout.moments}
        for start, stop in tiles(len(weight_P2), SLICE_NUMBERS):
            parts, moments = {}, {}
            for name, storage in layout.moments.items():
                shape = (stop - start, 2)[: widths[name]]
                parts[name] = storage.slice(stored[name], widths[name] * start, widths[name] * stop)
                moments[name] = storage.read(parts[name], shape).to(layout.dtype)
            direction = rule.direction(grad_P2[start:stop].to(layout.dtype), moments, step, group)
            Stored(layout, parts, rounding, offset=2 * start).write(moments)
            write_direction_(weight_P2[start:stop], direction, group, rounding)
        copy_back(member.parameter, weight)
        self.ran = rule.words

    def begin_sum(self, member: Member, grad: Any, how: Summing) -> FullSum:
        """See `Step.begin_sum`."""
        return FullSum(self, member)
