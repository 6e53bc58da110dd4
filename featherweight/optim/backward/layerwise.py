"""Layer-wise updates: each weight is updated inside the backward pass, and its gradient freed at once.

`layerwise` hangs a hook on every parameter of one ordinary optimizer. Without accumulation a hook makes the step of its
parameter from the full gradient, with the same bits as `optimizer.step()`. With accumulation it adds the gradient's
projection to a small sum (`accumulation.py`) and makes the step at the last micro-batch.

A window is the `accumulation_steps` backward passes of one optimizer step; `backward_pass.py` says where one begins and
ends.
Source: GaLore, arXiv 2403.03507, section 4.3; the treatment of accumulation, clipping and norms is ours.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from featherweight import ownership
from featherweight.errors import ConfigError, DeviceError
from featherweight.linalg.outer_product import OuterProduct
from featherweight.optim.backward.backward_pass import BackwardPass
from featherweight.optim.backward.core_receiver import CoreSlot, costs, share_basis
from featherweight.optim.backward.handle import LayerwiseHandle
from featherweight.optim.backward.shared_basis import SharedBasis
from featherweight.optim.backward.step_guard import before_every_step
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import NORM_KEY
from featherweight.optim.reduce import LocalReducer, Reducer
from featherweight.optim.step.accumulation import CoreSum, FullSum, GradientSum, core_sum_bytes
from featherweight.optim.step.finite import sizes_of
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.matrix import Group, ProjectedMatrix
from featherweight.optim.step.tensor import TensorSum, needs_whole_gradient
from featherweight.optim.tucker.ranks import is_open
from featherweight.ownership import Part
from featherweight.unwrap import unwrap_optimizer

CLIP_MODES = ("delayed", "per_tensor", "norm_growth", "projected")
MAX_GROWTH = 1.01
"""Largest ratio of the norms of one tensor's successive gradients under `clip="norm_growth"` (Fira's limit)."""


def layerwise(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    accumulation_steps: int = 1,
    max_grad_norm: float | None = None,
    clip: str = "delayed",
    reducer: Reducer | None = None,
) -> LayerwiseHandle:
    """Make an optimizer update each weight inside the backward pass, where its gradient is freed at once.

    From here on ``loss.backward()`` trains: after every `accumulation_steps` calls of it one optimizer step is done,
    and the gradients of these calls have been added up (so divide each loss by the items of all of them).
    `optimizer.step()` and `zero_grad()` may stay in the loop and do nothing, except that `step()` in the middle of a
    window ends it early, as the last, shorter one of an epoch needs. Schedulers step once per optimizer step, as
    always.

    The updates end with `handle.remove()`, or when neither handle nor optimizer is held any more. Until then no other
    optimizer may step over these parameters: it would find no gradients, so its `step()` is refused.

    `clip` says how `max_grad_norm` is kept although no moment exists at which all gradients do:

    - "delayed": by the factor that the norm of the step before asks for. The first step is not clipped; Adam's does not
      depend on the scale of its gradient.
    - "per_tensor": each tensor's gradient by its own norm.
    - "norm_growth": each tensor's gradient to 1.01 times its norm at the last step that had one; `max_grad_norm` is
      not read.
    - "projected": exactly, by the norm of what is used of the gradients: cores, and gradients of the parameters
      without a subspace. All of these are kept until the backward pass ends.

    Args:
        model: the module that the training loop calls; `optimizer` holds parameters of it.
        optimizer: one of `fw.optim`, full-rank `AdamW` included.
        accumulation_steps: backward passes of one optimizer step.
        max_grad_norm: largest norm of the gradients; None for no limit, infinity to know `grad_norm` all the same.
        clip: "delayed", "per_tensor", "norm_growth" or "projected".
        reducer: averages gradients over processes; None for one process.
    Returns:
        Handle with `grad_norm`, `remove()`, `discard()`; as a context manager it removes itself at the end.
    Raises:
        ConfigError: for another kind of optimizer, parameters that are not the model's, an option out of range, or a
            second call for the same optimizer or model; later for a loss scaler: in the forward pass where that runs
            in autocast to float16, else in the first `scaler.step()`, when a first backward pass has moved weights.
        DeviceError: for a model inside DistributedDataParallel, which keeps all gradients in its buckets.
    Cost: gradient memory of the largest single gradient; with accumulation also of one float32 core for each projected
        matrix, the gradient of every other parameter, and sketches for the matrices that refresh in this step.
        Optimizers that need whole gradients (Fira, APOLLO, error feedback) accumulate whole gradients.
    Source: arXiv 2403.03507, section 4.3. Differs from the official code: accumulation, clipping and the reported
        norm are those of the optimizer step, not of the micro-batch; there is one optimizer and one scheduler.
    Example:
        >>> import featherweight as fw
        >>> model = nn.Sequential(nn.Linear(64, 32))
        >>> optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=4), lr=1e-2)
        >>> with layerwise(model, optimizer, accumulation_steps=2) as handle:
        ...     for x in torch.ones(4, 8, 64):
        ...         (model(x).square().mean() / 2).backward()
        >>> handle.steps, model[0].weight.grad is None, handle.grad_norm > 0
        (2, True, True)
    """
    inner = unwrap_optimizer(optimizer)
    if not isinstance(inner, LowRankOptimizer):
        raise ConfigError(
            f"layerwise: optimizer={type(inner).__name__} cannot update single parameters; expected one of fw.optim. "
            "Use fw.optim.AdamW or a low-rank one."
        )
    if isinstance(model, DistributedDataParallel) or (reducer is None and _world_size() > 1):
        raise DeviceError(
            f"layerwise: world_size={_world_size()} processes train this {type(model).__name__}; expected one process, "
            "because DistributedDataParallel keeps every gradient in its buckets. Start the program without a "
            "launcher, or give the bare model and a reducer."
        )
    if not isinstance(accumulation_steps, Integral) or isinstance(accumulation_steps, bool) or accumulation_steps < 1:
        raise ConfigError(
            f"layerwise: accumulation_steps={accumulation_steps!r} is not allowed; expected a whole number >= 1. "
            "Count the backward passes of one optimizer step."
        )
    if clip not in CLIP_MODES:
        raise ConfigError(
            f"layerwise: clip={clip!r} is unknown; expected one of {', '.join(CLIP_MODES)}. Take delayed if in doubt."
        )
    if max_grad_norm is not None and not (isinstance(max_grad_norm, Real) and max_grad_norm > 0):
        raise ConfigError(
            f"layerwise: max_grad_norm={max_grad_norm!r} is not allowed; expected a number > 0, or None for no limit. "
            "Change max_grad_norm."
        )
    return LayerwiseHandle(Layerwise(model, inner, accumulation_steps, max_grad_norm, clip, reducer or LocalReducer()))


def layerwise_handles(model: nn.Module) -> list["Layerwise"]:
    """Return the updates whose hooks the parameters of a model carry."""
    return ownership.owners_of(Part.GRADIENT, model.parameters())


def _refuse_foreign_step(optimizer: Optimizer) -> None:
    """Refuse the step of an optimizer over parameters whose gradients another one has consumed layer-wise."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for owner in ownership.owners_of(Part.GRADIENT, parameters):
        if owner.optimizer is not optimizer:
            names = [p for p in parameters if ownership.owner_of(Part.GRADIENT, p) is owner]
            raise ConfigError(
                f"{type(optimizer).__name__}.step: {len(names)} of {len(parameters)} parameters, for example "
                f"'{owner.optimizer.layouts[names[0]].name}', are trained layer-wise by another optimizer "
                f"({type(owner.optimizer).__name__}), which consumes their gradients; expected one optimizer for each "
                "parameter. Call remove() on the handle of fw.optim.layerwise (optimizer.layerwise) before the "
                "backward pass, or leave these parameters out."
            )


def core_slot(
    parameter: Tensor, *, prefer: str, exact_refresh: bool, siblings: Sequence[Tensor] = ()
) -> CoreSlot | None:
    """Return where the next forward pass with a weight leaves its core; None if its whole gradient is wanted.

    Args:
        parameter: weight of a linear layer.
        prefer: see `featherweight.optim.backward.core_receiver.why_full`; counts at the first call for a parameter.
        exact_refresh: form the whole gradient at steps that refresh.
        siblings: weights, this one among them, that share one right basis as far as they can; counts at the first call
            for one of them.
    """
    handle: Layerwise | None = ownership.owner_of(Part.GRADIENT, parameter)
    if handle is None:
        return None
    return handle.core_slot(parameter, prefer=prefer, exact_refresh=exact_refresh, siblings=siblings)


class Layerwise:
    """The updates of a layer-wise optimizer; made by `layerwise`, see there. They end with their optimizer.

    A copy or pickle of the model leaves it out. Hooks of the optimizer's `step` run when the loop calls `step()`, not
    at the updates inside the backward pass. Freeze and unfreeze parameters before attaching.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: LowRankOptimizer,
        accumulation_steps: int,
        max_grad_norm: float | None,
        clip: str,
        reducer: Reducer,
    ) -> None:
        self.model, self.reducer = model, reducer
        self._optimizer = weakref.ref(optimizer)
        self.accumulation_steps, self.max_grad_norm, self.clip = accumulation_steps, max_grad_norm, clip
        self.steps = 0
        """Optimizer steps made."""
        self.grad_norm: float | None = None
        """Norm of the gradient of the last step, before clipping; None before the first. Exact for
        whole gradients without accumulation. Of sums and of core gradients what lies outside the subspaces is estimated
        by a random probe; it is left out under "projected" and where nothing asks for it, with `max_grad_norm=None`."""
        # By position: loading a state (accelerate does it in prepare) puts new dicts into the optimizer's list.
        self._group_index = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._sums: dict[Tensor, GradientSum] = {}
        self._slots: dict[Tensor, CoreSlot] = {}
        self._norms: list[float] = []  # squared, of the tensors that this window has updated
        self._micro_step = 0
        self._has_skipped = False  # in this window
        self._pass = BackwardPass(
            model,
            on_end=_weakly(self._end_backward),
            on_broken=_weakly(self._lose_window),
            before_forward=_weakly(self._refuse_float16),
        )
        self._cleanup = ExitStack()
        # Nothing refers to the updates but their optimizer and the user's handle; with these the hooks go, too.
        weakref.finalize(self, self._cleanup.close).atexit = False
        self.attach()

    @property
    def optimizer(self) -> LowRankOptimizer:
        """The optimizer that makes the updates."""
        optimizer = self._optimizer()
        assert optimizer is not None, "the updates end with their optimizer"
        return optimizer

    # ---- hooks

    def attach(self) -> None:
        """Hang the hooks on the model; see `layerwise` for what is refused."""
        parameters = set(self.model.parameters())
        trained = [p for p in self._group_index if p.requires_grad]
        outside = [p for p in trained if p not in parameters]
        if outside or not trained:
            found = f"{len(outside)} of {len(trained)}" if outside else "0"
            raise ConfigError(
                f"layerwise: model={type(self.model).__name__} lacks {found} trainable parameters of this optimizer; "
                "expected all of them in the model that the training loop calls, and at least one. Give that model."
            )
        if self.optimizer.layerwise is not None:
            raise ConfigError(
                f"layerwise: optimizer={type(self.optimizer).__name__} is layer-wise already; expected one call for "
                "each optimizer. Remove the first handle."
            )
        if layerwise_handles(self.model):
            raise ConfigError(
                f"layerwise: model={type(self.model).__name__} has parameters that another optimizer updates "
                "layer-wise; expected one optimizer for each parameter. Remove its handle first."
            )
        self.optimizer.layerwise = self
        # torch's GradScaler then hands its scale to step() instead of looking for gradients, and step() can refuse it.
        self.optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
        self._cleanup.callback(_release, self._optimizer)
        words, way_out = (
            f"layer-wise {type(self.optimizer).__name__}",
            "Remove the handle of fw.optim.layerwise first.",
        )
        for parameter in trained:
            ownership.claim(Part.GRADIENT, parameter, self, words=words, way_out=way_out)
            hook = parameter.register_post_accumulate_grad_hook(_weakly(self._on_gradient))
            self._cleanup.callback(hook.remove)
        self._pass.attach(self._cleanup)
        before_every_step(_refuse_foreign_step)

    def remove(self) -> None:
        """Take all hooks away; the optimizer is an ordinary one again. May be called twice."""
        if self._micro_step:
            warnings.warn(
                f"layerwise: {self._micro_step} of {self.accumulation_steps} micro-batches wait for the rest of their "
                "window and are dropped; call optimizer.step() before the end to use them.",
                stacklevel=2,
            )
            self.discard()
        self._cleanup.close()
        for parameter in self._group_index:
            ownership.release(Part.GRADIENT, parameter, self)

    def discard(self) -> None:
        """Drop the micro-batches of the present window, for example after a loss that is not finite."""
        for slot in self._slots.values():
            slot.discard()
        for shared in self._shared_bases():
            shared.discard()
        self._pass.reset()
        self._sums.clear()
        self._norms.clear()
        self._micro_step, self._has_skipped = 0, False

    def _refuse_float16(self) -> None:
        kind = next((p.device.type for p in self._group_index), "cpu")
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
            raise ConfigError(
                "layerwise: autocast=float16 needs a loss scaler, whose scale is taken back only after the backward "
                "pass, when the weights have moved; expected bfloat16 or float32. Use bfloat16, or an ordinary "
                "optimizer step."
            )

    def _lose_window(self) -> None:
        if self._sums:
            warnings.warn(
                f"layerwise: a backward pass was broken off; the {self._micro_step} micro-batches before it in its "
                "window are dropped with it. Repeat the window, or call discard() after the exception.",
                stacklevel=2,
            )
        self.discard()

    def _on_gradient(self, parameter: Tensor) -> None:
        grad, layout = parameter.grad, self.optimizer.layouts[parameter]
        if grad is None:
            return
        if grad.is_sparse and parameter not in self._slots:
            raise ConfigError(
                f"layerwise: '{layout.name}' has a gradient of layout=sparse; expected a dense gradient. "
                "Build the embedding with sparse=False."
            )
        if self._pass.is_complete(parameter, layout.name):
            self._take(parameter)

    def _take(self, parameter: Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        if grad is not None:
            with self._undisturbed(parameter):
                # An empty sparse gradient is that of a weight whose core has gone another way.
                self._receive(parameter, None if grad.is_sparse else grad)

    def _end_backward(self, late: list[Tensor]) -> None:
        for parameter in late:
            self._take(parameter)
        self._micro_step += 1
        if self._micro_step == self.accumulation_steps:
            self.end_window()

    @staticmethod
    @contextmanager
    def _undisturbed(parameter: Tensor) -> Any:
        """Compute as outside of the backward pass: without graph, and in full precision where it runs in autocast."""
        with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
            yield

    def end_window(self) -> None:
        """Make the steps that are still to be made in this window; nothing if it is empty."""
        with self._undisturbed(next(iter(self._group_index))):
            self._end_window()

    # ---- one window

    def group_of(self, parameter: Tensor) -> Group:
        """Return the parameter group of a parameter."""
        return self.optimizer.param_groups[self._group_index[parameter]]

    @property
    def is_single(self) -> bool:
        """Whether the gradient of one backward pass is that of the step."""
        return self.accumulation_steps == 1 and self.reducer.world_size == 1

    @property
    def probes_norm(self) -> bool:
        """Whether the norm of what lies outside of the subspaces is estimated."""
        return self.clip == "norm_growth" or (self.clip != "projected" and self.max_grad_norm is not None)

    def _receive(self, parameter: Tensor, grad: Tensor | None) -> None:
        """Take the gradient of one parameter and micro-batch: update at once where it is complete, else add it up.

        Args:
            parameter: whose gradient it is.
            grad: None where cores have come through the parameter's slot instead.
        """
        is_last = self._micro_step + 1 == self.accumulation_steps
        if slot := self._slots.get(parameter):
            if grad is None:
                slot.complete()
            elif held := slot.take_held():  # the weight is also used where its gradient is formed
                grad = grad + held.dense().to(grad.dtype)
        total = self._sums.get(parameter)
        if grad is not None:
            if total is None and self.is_single and self.clip != "projected" and not self._shared_basis(parameter):
                self._update_from_gradient(parameter, self.group_of(parameter), grad)
                return
            if total is None:
                total = self.begin_sum(parameter, grad, is_only=self.is_single)
            total.add(grad)
        if is_last and total is not None and self.clip != "projected":
            self._update_from_sum(parameter)

    def begin_sum(self, parameter: Tensor, grad: Tensor | OuterProduct | None, *, is_only: bool) -> GradientSum:
        """Begin to sum up the gradients of one parameter over a step.

        Args:
            parameter: whose gradients they are.
            grad: the first one; None if it needs no basis.
            is_only: whether it is the only one, so that a basis that is due may be fitted to it.
        """
        layout, total = self.optimizer.layouts[parameter], None
        if layout.tensor is not None:
            is_shared, state = self.reducer.world_size > 1, self.optimizer.state[parameter]
            if layout.rank is not None and not needs_whole_gradient(layout, state, is_shared=is_shared):
                self._sums[parameter] = self.optimizer.begin_tensor(parameter, self.group_of(parameter))
                return self._sums[parameter]
        elif layout.rank is not None:
            layout, matrices = self.matrices(parameter, grad)
            if not any(matrix.needs_gradient() for matrix in matrices):
                total = CoreSum(
                    layout,
                    matrices,
                    exact_refresh=is_only,
                    probe_norm=self.probes_norm,
                    is_shared=self.reducer.world_size > 1,
                    common=self._shared_basis(parameter),
                )
        self._sums[parameter] = total or FullSum()
        return self._sums[parameter]

    # ---- cores that come without a gradient

    def core_slot(
        self, parameter: Tensor, *, prefer: str, exact_refresh: bool, siblings: Sequence[Tensor] = ()
    ) -> CoreSlot | None:
        """See the function `core_slot`."""
        if parameter not in self._slots:
            trained = (one for one in (parameter, *siblings) if one.requires_grad and one in self._group_index)
            fresh = {one for one in trained if one not in self._slots}
            ordered = [one for one in dict.fromkeys((*siblings, parameter)) if one in fresh]
            slots = [CoreSlot(self, one, prefer=prefer, exact_refresh=exact_refresh) for one in ordered]
            self._slots.update({slot.parameter: slot for slot in slots})
            if siblings:
                share_basis(slots)
        slot = self._slots[parameter]
        return slot if slot.is_open() else None

    def _shared_basis(self, parameter: Tensor) -> SharedBasis | None:
        slot = self._slots.get(parameter)
        return None if slot is None else slot.shared

    def _shared_bases(self) -> Iterable[SharedBasis]:
        return dict.fromkeys(slot.shared for slot in self._slots.values() if slot.shared is not None)

    def matrices(self, parameter: Tensor, grad: Tensor | OuterProduct | None) -> tuple[Layout, list[ProjectedMatrix]]:
        """Return the projected matrices of a parameter; see `LowRankOptimizer.begin_matrices`."""
        return self.optimizer.begin_matrices(parameter, self.group_of(parameter), grad)

    def sum_of(self, parameter: Tensor) -> CoreSum | None:
        """Return the present sum of a parameter's cores."""
        total = self._sums.get(parameter)
        assert total is None or isinstance(total, CoreSum)
        return total

    def layout_of(self, parameter: Tensor) -> Layout:
        """Return how the optimizer treats a parameter, on the side that `proj_type="min_memory"` has chosen."""
        layout = self.optimizer.layouts[parameter]
        is_projected = layout.rank is not None and self.optimizer.state.get(parameter)
        return self.matrices(parameter, None)[0] if is_projected else layout

    @contextmanager
    def receiving(self, parameter: Tensor) -> Any:
        """Take in a core in the middle of a backward pass.

        Raises:
            ConfigError: if the handle was removed since the forward pass.
        """
        name = self.optimizer.layouts[parameter].name
        if self.optimizer.layerwise is not self:
            raise ConfigError(
                f"layerwise: '{name}' leaves the core of its gradient to a handle that was removed between forward and "
                "backward pass; expected it to stay for both. Repeat the forward pass."
            )
        if not self._pass.is_running:
            self._pass.begin_outside_of_checkpoints(name)
        with self._undisturbed(parameter):
            yield

    def core_rows(self) -> list[list[Any]]:
        """Return name, choice, share of FLOPs, bytes of core and gradient for each parameter that has a slot."""
        rows = []
        for parameter, slot in self._slots.items():
            layout = slot.layout
            numbers = costs(layout, parameter.element_size()) if layout.rank is not None else ("", "", "")
            rows.append([layout.name, slot.describe(), *numbers])
        return rows

    # ---- updates

    def _update_from_gradient(self, parameter: Tensor, group: Group, grad: Tensor) -> None:
        layout = self.optimizer.layouts[parameter]
        is_stacked = layout.rank is not None and layout.blocks is not None
        # All that the host must know is read at once: each wait keeps the backward pass from running ahead.
        (size,), is_used = sizes_of([grad], [layout.used_matrices(grad)] if is_stacked else ())
        if not size.is_usable:
            self._skip(1)
            return
        self._norms.append(size.squared_norm)
        factor = self._factor(parameter, size.squared_norm)
        grad = grad if factor == 1.0 else grad.mul_(factor)
        self.optimizer.step_gradient(parameter, group, grad, is_used if is_stacked else None)
        increment_version(parameter)  # torch's fused kernels do not; an S2FT change in place follows it

    def _update_from_sum(self, parameter: Tensor, factor: float | None = None) -> None:
        """Make the step of one parameter from what its micro-batches have left; `factor` None asks the clip mode.

        With a factor the sums of all parameters have been averaged over the processes before.
        """
        total, group = self._sums.pop(parameter), self.group_of(parameter)
        if factor is None:
            self._average(total, group)
        if isinstance(total, FullSum):
            assert total.grad is not None
            if factor is None:
                self._update_from_gradient(parameter, group, total.grad)
                return
            if total.size().is_usable:
                self.optimizer.step_gradient(parameter, group, total.grad.mul_(factor))
                increment_version(parameter)
            else:
                self._skip(1)
            return
        assert isinstance(total, CoreSum | TensorSum)
        if factor is None:
            squared = total.squared_norm()
            self._norms.append(squared)
            factor = self._factor(parameter, squared)
        self._skip(self.optimizer.step_cores(parameter, total, factor))

    def _average(self, total: GradientSum, group: Group) -> None:
        if self.reducer.world_size > 1:
            total.reduce(self.reducer.all_reduce, group)

    def _skip(self, count: int) -> None:
        self.optimizer.skipped_steps += count
        self._has_skipped = self._has_skipped or count > 0

    def _factor(self, parameter: Tensor, squared: float) -> float:
        """Return what the gradient of a tensor is multiplied with before its step."""
        if self.clip == "norm_growth":
            norm = squared**0.5
            state = self.optimizer.state[parameter]
            if not state and not is_open(self.optimizer.layouts[parameter]):
                self.optimizer.create_state(parameter)
            last = float(state["grad_norm"]) if "grad_norm" in state else 0.0
            factor = min(1.0, MAX_GROWTH * last / norm) if last > 0 and norm > 0 else 1.0
            if norm > 0:
                state["grad_norm"] = torch.tensor(norm * factor, dtype=torch.float32)
            return factor
        if self.max_grad_norm is None:
            return 1.0
        if self.clip == "per_tensor":
            return _clip_factor(self.max_grad_norm, squared**0.5)
        last_norm = self.optimizer.param_groups[0].get(NORM_KEY)
        return 1.0 if last_norm is None else _clip_factor(self.max_grad_norm, last_norm)

    def _end_window(self) -> None:
        if self._sums:
            factor = None
            if self.clip == "projected":
                for parameter, total in self._sums.items():
                    self._average(total, self.group_of(parameter))
                    squared = total.squared_norm()
                    if math.isfinite(squared):
                        self._norms.append(squared)
                limit = self.max_grad_norm
                factor = 1.0 if limit is None else _clip_factor(limit, self._total_norm())
            for parameter in list(self._sums):
                self._update_from_sum(parameter, factor)
        elif not self._micro_step:
            return
        for shared in self._shared_bases():
            shared.end_window()
        self.grad_norm = self._total_norm()
        for group in self.optimizer.param_groups:
            # What was left out may be the largest part: then the norm before it says more.
            before = group.get(NORM_KEY) or 0.0
            group[NORM_KEY] = max(before, self.grad_norm) if self._has_skipped else self.grad_norm
        self._norms.clear()
        self._micro_step, self._has_skipped = 0, False
        self.steps += 1
        self._pass.is_known = True
        # What torch's schedulers look at before they warn that no step was made.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def _total_norm(self) -> float:
        return math.sqrt(sum(self._norms))

    # ---- memory

    def held_tensors(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (parameter, tensor) for all that is kept of gradients between two backward passes."""
        for parameter, total in self._sums.items():
            for tensor in total.tensors():
                yield parameter, tensor
        for shared in self._shared_bases():
            for tensor in shared.tensors():
                yield shared.parameters[0], tensor

    def gradient_bytes(self) -> int:
        """Return the bytes of gradients at the peak of a step in which no matrix refreshes, by formula.

        The largest single gradient, and with accumulation, or `clip="projected"`, what is kept of each parameter. (A
        weight whose core comes without its gradient has none of the two at the peak of a step without accumulation. A
        part of a tied weight's gradient waits inside autograd from the head to the embedding; that counts as a
        temporary.)
        """
        largest = kept = 0
        is_kept = self.accumulation_steps > 1 or self.clip == "projected"
        for parameter in self._group_index:
            if not parameter.requires_grad:
                continue
            layout = self.layout_of(parameter)
            size_bytes = parameter.numel() * parameter.element_size()
            is_core = layout.rank is not None and layout.residual is None and not layout.error_feedback
            if is_kept:
                probe = self.probes_norm
                kept += core_sum_bytes(layout, is_sketched=False, probe_norm=probe) if is_core else size_bytes
            if parameter in self._slots and self._slots[parameter].reason is None:
                continue
            if is_core or self.accumulation_steps > 1 or not is_kept:  # else the gradient itself is what is kept
                largest = max(largest, size_bytes)
        return largest + kept


def _clip_factor(limit: float, norm: float) -> float:
    """Return the factor of torch's clip_grad_norm_."""
    return min(1.0, limit / (norm + 1e-6))


def _release(optimizer: "weakref.ref[LowRankOptimizer]") -> None:
    """Make an optimizer that may still live an ordinary one."""
    if (found := optimizer()) is not None:
        found.layerwise = None
        del found._step_supports_amp_scaling  # type: ignore[attr-defined]


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method for as long as its object lives."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        found = reference()
        return None if found is None else found(*args)

    return call


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
