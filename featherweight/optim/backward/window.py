"""A window: what one optimizer step collects while the backward passes that feed it run.

The layer-wise updates (`updates.py`), the receivers of cores and the shared bases all work on one `Window`: the sums of
the gradients, their norms and clipping, and the count of backward passes.
"""

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.linalg.outer_product import OuterProduct
from featherweight.optim.backward.backward_pass import BackwardPass
from featherweight.optim.backward.core_sum import CoreSum, core_sum_bytes
from featherweight.optim.backward.factor_sum import FactorSum
from featherweight.optim.backward.row_exchange import exchange_rows
from featherweight.optim.backward.step_sum import CommonSketch, FullSum, StepSum, Summing, TensorSum
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import NORM_KEY
from featherweight.optim.reduce import BUCKET_BYTES, Reducer
from featherweight.optim.sharding import at_hand, shard_of
from featherweight.optim.step.dense import DenseStep
from featherweight.optim.step.layout import Group, Layout, Member
from featherweight.optim.step.matrix import MatrixStep, ProjectedMatrix
from featherweight.optim.step.step import Step
from featherweight.optim.step.tensor import TensorStep

MAX_GROWTH = 1.01
"""Largest ratio of the norms of one tensor's successive gradients under `clip="norm_growth"` (Fira's limit)."""


class Part(NamedTuple):
    """What the next backward pass brings of an optimizer step whose passes reach different parameters."""

    is_first: bool
    """Whether nothing has come before for the parameters that it reaches."""
    is_last: bool
    """Whether nothing comes after for them."""
    begun: frozenset[Tensor] = frozenset()
    """Parameters to which an earlier part has brought something all the same, as to a tied embedding."""
    unfinished: frozenset[Tensor] = frozenset()
    """Parameters to which a later part brings something all the same."""
    is_mixed: bool = False
    """Whether parts of other parameters come in between, so that the sums of all live at once."""


class Window:
    """The sums, norms and micro-steps of the present optimizer step; one object for all steps, one after the other.

    Args:
        optimizer: makes the steps; the window refers to it weakly, as graphs refer to the window.
        backward_pass: the present one.
        accumulation_steps: backward passes of one step.
        max_grad_norm: see `featherweight.optim.layerwise`.
        clip: see `featherweight.optim.layerwise`.
        reducer: averages sums over processes.
    """

    def __init__(
        self,
        optimizer: LowRankOptimizer,
        backward_pass: BackwardPass,
        *,
        accumulation_steps: int,
        max_grad_norm: float | None,
        clip: str,
        reducer: Reducer,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._pass, self.reducer = backward_pass, reducer
        self.accumulation_steps, self.max_grad_norm, self.clip = accumulation_steps, max_grad_norm, clip
        # By position: loading a state (accelerate does it in prepare) puts new dicts into the optimizer's list.
        self._group_index = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.steps = 0
        """Optimizer steps made."""
        self.grad_norm: float | None = None
        """See `Layerwise.grad_norm`."""
        self.micro_step = 0
        """Backward passes of the present step that are complete."""
        self.part: Part | None = None
        """What the next backward pass brings, where those of a step are told apart; see `LayerwiseHandle.parts`."""
        self.is_closed = False
        """Whether the layer-wise updates were removed."""
        self._sums: dict[Tensor, StepSum] = {}
        self._ready: dict[Tensor, StepSum] = {}  # complete sums that wait for company on their way to other processes
        self._ready_bytes = 0
        self._norms: list[float] = []  # squared, of the tensors that this window has updated
        self._has_skipped = False

    # ---- parameters

    @property
    def optimizer(self) -> LowRankOptimizer:
        """The optimizer that makes the steps.

        Raises:
            ConfigError: if it is gone.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise ConfigError(
                "layerwise: a weight leaves its core to an optimizer that is gone since the forward pass; expected it "
                "to stay for both. Repeat the forward pass."
            )
        return optimizer

    def __contains__(self, parameter: Tensor) -> bool:
        return parameter in self._group_index

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._group_index)

    def group_of(self, parameter: Tensor) -> Group:
        """Return the parameter group of a parameter."""
        return self.optimizer.param_groups[self._group_index[parameter]]

    def step_of(self, parameter: Tensor) -> Step:
        """Return what makes the steps of a parameter."""
        return self.optimizer.step_of(parameter)

    def member(self, parameter: Tensor) -> Member:
        """Return a parameter with its state and group."""
        return self.optimizer.member(parameter, self.group_of(parameter))

    def layout_of(self, parameter: Tensor) -> Layout:
        """Return how a parameter is treated."""
        return self.step_of(parameter).layout

    def matrices(self, parameter: Tensor) -> list[ProjectedMatrix]:
        """Return the projected matrices of a parameter that has some."""
        step = self.step_of(parameter)
        assert isinstance(step, MatrixStep)
        return step.matrices(self.member(parameter))

    # ---- what is asked of sums

    @property
    def is_alone(self) -> bool:
        """Whether one process has all gradients."""
        return self.reducer.world_size == 1

    def is_single(self, parameter: Tensor) -> bool:
        """Whether the gradient that one backward pass brings to a parameter is that of the step."""
        if self.part is not None:
            return self.part.is_first and parameter not in self.part.begun and self.is_last(parameter) and self.is_alone
        return self.accumulation_steps == 1 and self.is_alone

    def is_last(self, parameter: Tensor) -> bool:
        """Whether nothing comes to a parameter in this step after the present backward pass."""
        if self.part is not None:
            return self.part.is_last and parameter not in self.part.unfinished
        return self.micro_step + 1 == self.accumulation_steps

    @property
    def estimates_norm(self) -> bool:
        """Whether the norm of what lies outside of the subspaces is estimated."""
        return self.clip == "norm_growth" or (self.clip != "projected" and self.max_grad_norm is not None)

    @property
    def waits_for_all(self) -> bool:
        """Whether no parameter makes its step before all gradients are there."""
        return self.clip == "projected"

    # ---- gradients

    @contextmanager
    def receiving(self, parameter: Tensor) -> Iterator[None]:
        """Take in a core in the middle of a backward pass.

        Raises:
            ConfigError: if the updates were removed since the forward pass.
        """
        name = self.layout_of(parameter).name
        if self.is_closed:
            raise ConfigError(
                f"layerwise: '{name}' leaves the core of its gradient to a handle that was removed between forward and "
                "backward pass; expected it to stay for both. Repeat the forward pass."
            )
        if not self._pass.is_running:
            self._pass.begin_outside_of_checkpoints(name)
        with undisturbed(parameter):
            yield

    def add(self, parameter: Tensor, grad: Tensor | None, common: CommonSketch | None) -> None:
        """Take the gradient of one parameter and micro-batch: update at once where it is complete, else add it up.

        Args:
            parameter: whose gradient it is.
            grad: None where cores have come without it.
            common: see `Summing.common`.
        """
        if grad is not None:
            total = self._sums.get(parameter)
            if total is None and self.is_single(parameter) and not self.waits_for_all and common is None:
                total = self._sums[parameter] = FullSum(self.step_of(parameter), self.member(parameter))
            elif total is None:
                shard, is_only = shard_of(parameter), self.is_single(parameter)
                is_whole = shard is not None and shard.rows is not None
                total = self.begin_sum(parameter, grad, is_only=is_only, common=common, brings_cores=is_whole)
            total.add(grad)
        if not self.is_last(parameter) or parameter not in self._sums or self.waits_for_all:
            return
        if self.is_alone:
            self._update(parameter, self._sums.pop(parameter), None)
            return
        self._ready[parameter] = total = self._sums.pop(parameter)
        self._ready_bytes += sum(tensor.nbytes for tensor in total.tensors())
        if self._ready_bytes >= BUCKET_BYTES:
            self._exchange()

    def begin_sum(
        self,
        parameter: Tensor,
        grad: Tensor | OuterProduct | None,
        *,
        is_only: bool,
        common: CommonSketch | None,
        brings_cores: bool = False,
    ) -> StepSum:
        """Begin to sum up the gradients of one parameter over a step.

        Args:
            parameter: whose gradients they are.
            grad: the first one; None if it needs no basis.
            is_only: see `Summing`.
            common: see `Summing`.
            brings_cores: see `Summing`.
        """
        how = Summing(is_only, self.estimates_norm, not self.is_alone, brings_cores, common)
        step, member = self.step_of(parameter), self.member(parameter)
        total: StepSum
        comes_alone = self.part is not None and not self.part.is_mixed and self.is_alone
        if comes_alone and isinstance(grad, Tensor) and _refresh_is_due(step, member):
            # All parts of a parameter come one after the other, so that its whole sum is there alone: an exact basis.
            # Between processes whole sums do not travel.
            total = FullSum(step, member)
        else:
            total = sum_of(step, member, grad, how)
        self._sums[parameter] = total
        return total

    def begin_factor_sum(self, parameter: Tensor) -> FactorSum:
        """Begin the sum of the only gradient of a step by rows, which comes as its factors."""
        step = self.step_of(parameter)
        assert isinstance(step, DenseStep)
        total = self._sums[parameter] = FactorSum(step, self.member(parameter), self.estimates_norm)
        return total

    def core_sum_of(self, parameter: Tensor) -> CoreSum | None:
        """Return the present sum of a parameter's cores."""
        total = self._sums.get(parameter)
        return total if isinstance(total, CoreSum) else None

    # ---- updates

    def _update(self, parameter: Tensor, total: StepSum, factor: float | None) -> None:
        """Make the step of one parameter from what its micro-batches, averaged over processes, have left.

        Args:
            parameter: whose step it is.
            total: the sum.
            factor: from clipping; None asks the clip mode.
        """
        if factor is None:
            squared, factor = total.squared_norm(), 1.0
            if math.isfinite(squared):
                self._norms.append(squared)
                factor = self._factor(parameter, squared)
        self.member(parameter)  # checked: it may have changed since the sum began
        skipped = total.update_(factor)
        self.optimizer.skipped_steps += skipped
        self._has_skipped = self._has_skipped or skipped > 0

    def exchange(self) -> None:
        """Make the steps of all complete sums that wait for others; all processes do it at the same place."""
        if not self.is_alone:
            self._exchange()

    def _exchange(self) -> None:
        """Average the sums that wait over the processes, in one collective, and make their steps."""
        ready, self._ready, self._ready_bytes = self._ready, {}, 0
        self._average(ready)
        for parameter, total in ready.items():
            self._update(parameter, total, None)

    def _average(self, totals: Mapping[Tensor, StepSum]) -> None:
        self.reducer.require_same([self.layout_of(parameter).name for parameter in totals])
        tensors = [tensor for total in totals.values() for tensor in total.shared_tensors()]
        if tensors:
            self.reducer.mean_(tensors)
        exchange_rows(totals)

    def _factor(self, parameter: Tensor, squared: float) -> float:
        """Return what the gradient of a tensor is multiplied with before its step."""
        if self.clip == "norm_growth":
            norm, member, step = squared**0.5, self.member(parameter), self.step_of(parameter)
            if not member.state and not step.waits_for_gradient():
                step.create_state(member)
            last = float(member.state["grad_norm"]) if "grad_norm" in member.state else 0.0
            factor = min(1.0, MAX_GROWTH * last / norm) if last > 0 and norm > 0 else 1.0
            if norm > 0:
                member.state["grad_norm"] = torch.tensor(norm * factor, dtype=torch.float32)
            return factor
        if self.max_grad_norm is None:
            return 1.0
        if self.clip == "per_tensor":
            return _clip_factor(self.max_grad_norm, squared**0.5)
        last_norm = self.optimizer.param_groups[0].get(NORM_KEY)
        return 1.0 if last_norm is None else _clip_factor(self.max_grad_norm, last_norm)

    def update_all(self) -> bool:
        """Make the steps that are still to be made; return whether the window held anything."""
        if self.is_alone and not self._sums:
            return self.micro_step > 0
        if not (self.micro_step or self._sums or self._ready):
            return False
        factor, sums = None, {**self._ready, **self._sums}
        self._ready, self._ready_bytes, self._sums = {}, 0, {}
        if not self.is_alone:
            self._average(sums)  # also of nothing: other processes may have something, and must not wait for it
        if self.waits_for_all:
            for total in sums.values():
                squared = total.squared_norm()
                if math.isfinite(squared):
                    self._norms.append(squared)
            factor = 1.0 if self.max_grad_norm is None else _clip_factor(self.max_grad_norm, self._total_norm())
        while sums:
            parameter = next(iter(sums))
            self._update(parameter, sums.pop(parameter), factor)
        return True

    def finish(self) -> None:
        """Count the optimizer step and begin the next window."""
        self.grad_norm = self._total_norm()
        for group in self.optimizer.param_groups:
            # What was left out may be the largest part: then the norm before it says more.
            before = group.get(NORM_KEY) or 0.0
            group[NORM_KEY] = max(before, self.grad_norm) if self._has_skipped else self.grad_norm
        self.discard()
        self.steps += 1
        # What torch's schedulers look at before they warn that no step was made.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def discard(self) -> None:
        """Drop all that the present window holds."""
        self._sums.clear()
        self._ready.clear()
        self._norms.clear()
        self._ready_bytes = 0
        self.micro_step, self._has_skipped, self.part = 0, False, None

    def _total_norm(self) -> float:
        return math.sqrt(sum(self._norms))

    # ---- memory

    @property
    def is_empty(self) -> bool:
        """Whether no gradients are kept."""
        return not (self._sums or self._ready)

    def tensors(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (parameter, tensor) for all sums."""
        sums = {**self._sums, **self._ready}
        return ((parameter, tensor) for parameter, total in sums.items() for tensor in total.tensors())

    def gradient_bytes(self, cores: Mapping[Tensor, bool]) -> int:
        """Return the bytes of gradients at the peak of a step in which no matrix refreshes, by formula.

        Args:
            cores: for parameters with a receiver whether its core comes without its gradient.
        """
        largest = kept = 0
        is_kept = self.accumulation_steps > 1 or self.waits_for_all
        for parameter in self:
            if not parameter.requires_grad:
                continue
            size_bytes = at_hand(parameter).numel() * parameter.element_size()
            core_bytes = _core_bytes(self.step_of(parameter), self.estimates_norm)
            if is_kept:
                kept += size_bytes if core_bytes is None else core_bytes
            if cores.get(parameter, False):
                continue
            if core_bytes is not None or self.accumulation_steps > 1 or not is_kept:
                largest = max(largest, size_bytes)  # else the gradient itself is what is kept
        return largest + kept


def sum_of(step: Step, member: Member, grad: Tensor | OuterProduct | None, how: Summing) -> StepSum:
    """Return the empty sum of a parameter's gradients over a step.

    Args:
        step: of the parameter.
        member: the parameter.
        grad: the first gradient, or its factors; None if it needs no basis.
        how: what the step asks of the sum.
    """
    comes_in_rows = step.layout.shard is not None and not how.brings_cores
    if isinstance(step, MatrixStep) and not comes_in_rows:
        matrices = step.matrices(member, grad)
        if not any(matrix.needs_gradient() for matrix in matrices):
            return CoreSum(step, member, matrices, how)
    # Ranks that follow a gradient wait for a whole one. Bases that are due must be those of all processes: they are
    # fitted to the mean of the whole gradients, as an ordinary step fits them; between refreshes cores are exchanged.
    # So does a residual: what lies outside of the subspace is in no core.
    if isinstance(step, TensorStep) and not step.waits_for_gradient() and step.layout.plan.residual is None:
        if not (how.is_shared and step.refresh_is_due(member.state)):
            return TensorSum(step, member, step.tensor(member))
    return FullSum(step, member)


def _refresh_is_due(step: Step, member: Member) -> bool:
    """Say whether the sum of this step asks for bases that are fitted to it."""
    if isinstance(step, MatrixStep):
        state = member.state
        fits = step.layout.seeded_basis is None
        return fits and (not state or bool((state["step"] >= state["next_refresh"]).any()))
    return isinstance(step, TensorStep) and step.refresh_is_due(member.state)


def _core_bytes(step: Step, estimates_norm: bool) -> int | None:
    """Return the bytes of the sum of a step without refresh; None for a sum of whole gradients."""
    if isinstance(step, TensorStep):
        return None if step.layout.plan.residual else step.layout.plan.sum_bytes(step.layout.dtype)
    if not isinstance(step, MatrixStep) or not (step.layout.residual.is_plain or step.layout.residual.is_often_plain):
        return None
    return core_sum_bytes(step.layout.whole, is_sketched=False, estimates_norm=estimates_norm)


@contextmanager
def undisturbed(parameter: Tensor) -> Iterator[None]:
    """Compute as outside of the backward pass: without graph, and in full precision where it runs in autocast."""
    kinds = {parameter.device.type, *(("cuda",) if torch.cuda.is_available() else ())}  # its weight may wait elsewhere
    with torch.no_grad(), ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _clip_factor(limit: float, norm: float) -> float:
    """Return the factor of torch's clip_grad_norm_."""
    return min(1.0, limit / (norm + 1e-6))
