"""The hooks of layer-wise updates: which gradient goes when into the window, and where the updates end.

`Layerwise` hangs a hook on every parameter of one ordinary optimizer. `backward_pass.py` says where a backward pass
begins and ends, `window.py` holds what a step collects, `core_receiver.py` takes cores that come without a gradient.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight import ownership
from featherweight.errors import ConfigError
from featherweight.every_step import before_every_step
from featherweight.optim.backward.backward_pass import BackwardPass
from featherweight.optim.backward.core_receiver import CoreReceiver, costs, share_basis
from featherweight.optim.backward.shared_basis import SharedBasis
from featherweight.optim.backward.window import Window, undisturbed
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.reduce import Reducer
from featherweight.optim.sharding import sharded_of, unsharded_of
from featherweight.optim.step.matrix_layout import MatrixLayout
from featherweight.ownership import Part
from featherweight.unwrap import is_distributed, local_of


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
        self.model = model
        self._optimizer = weakref.ref(optimizer)
        self._receivers: dict[Tensor, CoreReceiver] = {}
        self._pass = BackwardPass(
            model,
            on_end=_weakly(self._end_backward),
            on_broken=_weakly(self._lose_window),
            before_forward=_weakly(self._refuse_float16),
            ends_late=any(is_distributed(parameter) for parameter in model.parameters()),
        )
        self.window = Window(
            optimizer,
            self._pass,
            accumulation_steps=accumulation_steps,
            max_grad_norm=max_grad_norm,
            clip=clip,
            reducer=reducer,
        )
        """What the present step has collected."""
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

    @property
    def grad_norm(self) -> float | None:
        """Norm of the gradient of the last step, before clipping; None before the first.

        Exact for whole gradients without accumulation. Of sums and of core gradients what lies outside the subspaces is
        estimated by a random sketch; it is left out under "projected" and where nothing asks for it, with
        `max_grad_norm=None`.
        """
        return self.window.grad_norm

    # ---- hooks

    def attach(self) -> None:
        """Hang the hooks on the model; see `layerwise` for what is refused."""
        parameters = set(self.model.parameters())
        trained = [p for p in self.window if p.requires_grad]
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
        self.window.is_closed = False
        # torch's GradScaler then hands its scale to step() instead of looking for gradients, and step() can refuse it.
        self.optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
        self._cleanup.callback(_release, self._optimizer, self.window)
        words, way_out = (
            f"layer-wise {type(self.optimizer).__name__}",
            "Remove the handle of fw.optim.layerwise first.",
        )
        for parameter in trained:
            ownership.claim(Part.GRADIENT, parameter, self, words=words, way_out=way_out)
            hook = parameter.register_post_accumulate_grad_hook(_weakly(self._on_gradient))
            self._cleanup.callback(hook.remove)
        for whole in unsharded_of(trained):
            hook = whole.register_post_accumulate_grad_hook(_weakly(self._on_whole_gradient))
            self._cleanup.callback(hook.remove)
        self._pass.attach(self._cleanup)
        before_every_step(_refuse_foreign_step)

    def remove(self) -> None:
        """Take all hooks away; the optimizer is an ordinary one again. May be called twice."""
        if waiting := self.window.micro_step:
            warnings.warn(
                f"layerwise: {waiting} of {self.window.accumulation_steps} micro-batches wait for the rest of their "
                "window and are dropped; call optimizer.step() before the end to use them.",
                stacklevel=2,
            )
            self.discard()
        self._cleanup.close()
        for parameter in self.window:
            ownership.release(Part.GRADIENT, parameter, self)

    def discard(self) -> None:
        """Drop the micro-batches of the present window, for example after a loss that is not finite."""
        for receiver in self._receivers.values():
            receiver.discard()
        for shared in self._shared_bases():
            shared.discard()
        self.window.discard()
        self._pass.reset()

    def _refuse_float16(self) -> None:
        kind = next((p.device.type for p in self.window), "cpu")
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
            raise ConfigError(
                "layerwise: autocast=float16 needs a loss scaler, whose scale is taken back only after the backward "
                "pass, when the weights have moved; expected bfloat16 or float32. Use bfloat16, or an ordinary "
                "optimizer step."
            )

    def _lose_window(self) -> None:
        if not self.window.is_empty:
            warnings.warn(
                f"layerwise: a backward pass was broken off; the {self.window.micro_step} micro-batches before it in "
                "its window are dropped with it. Repeat the window, or call discard() after the exception.",
                stacklevel=2,
            )
        self.discard()

    def _on_gradient(self, parameter: Tensor) -> None:
        grad, name = parameter.grad, self.window.layout_of(parameter).name
        if grad is None:
            return
        if grad.is_sparse and parameter not in self._receivers:
            raise ConfigError(
                f"layerwise: '{name}' has a gradient of layout=sparse; expected a dense gradient. "
                "Build the embedding with sparse=False."
            )
        if self._pass.is_complete(parameter, name):
            self._take(parameter)

    def _on_whole_gradient(self, whole: Tensor) -> None:
        """Take away what a layer has left for the whole of a sharded parameter, before FSDP2 looks for it there."""
        parameter, grad = sharded_of(whole), whole.grad
        receiver = self._receivers.get(parameter)
        if grad is None or receiver is None or not (grad.is_sparse or receiver.is_waiting):
            return
        whole.grad = None
        if self._pass.is_complete(parameter, self.window.layout_of(parameter).name):
            with undisturbed(parameter):
                receiver.complete()
                if not grad.is_sparse:  # the weight is also used where its gradient is formed
                    receiver.add_whole(grad)
                self.window.add(parameter, None, receiver.shared)

    def _take(self, parameter: Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        if grad is None:
            return
        grad = local_of(grad)
        with undisturbed(parameter):
            receiver = self._receivers.get(parameter)
            if receiver is None:
                self.window.add(parameter, grad, None)
            elif grad.is_sparse:  # an empty one, of a weight whose core has gone another way
                receiver.complete()
                self.window.add(parameter, None, receiver.shared)
            else:
                if (held := receiver.take_held()) is not None:
                    grad = grad + held.dense().to(grad.dtype)  # the weight is also used where its gradient is formed
                self.window.add(parameter, grad, receiver.shared)

    def _end_backward(self, late: list[Tensor]) -> None:
        for parameter in late:
            self._take(parameter)
        self.window.micro_step += 1
        if self.window.part is None and self.window.micro_step == self.window.accumulation_steps:
            self.end_window()

    def end_window(self) -> None:
        """Make the steps that are still to be made in this window; nothing if it is empty."""
        with undisturbed(next(iter(self.window))):
            if not self.window.update_all():
                return
            for shared in self._shared_bases():
                shared.end_window()
            self.window.finish()
            self._pass.is_known = True

    # ---- cores that come without a gradient

    def core_receiver(
        self, parameter: Tensor, *, prefer: str, exact_refresh: bool, siblings: Sequence[Tensor] = ()
    ) -> CoreReceiver | None:
        """See the function `core_receiver`."""
        if parameter not in self._receivers:
            trained = (one for one in (parameter, *siblings) if one.requires_grad and one in self.window)
            fresh = {one for one in trained if one not in self._receivers}
            ordered = [one for one in dict.fromkeys((*siblings, parameter)) if one in fresh]
            made = [CoreReceiver(self.window, one, prefer=prefer, exact_refresh=exact_refresh) for one in ordered]
            self._receivers.update({receiver.parameter: receiver for receiver in made})
            if siblings:
                share_basis(made)
        receiver = self._receivers[parameter]
        return receiver if receiver.is_open() else None

    def _shared_bases(self) -> Iterable[SharedBasis]:
        receivers = self._receivers.values()
        return dict.fromkeys(receiver.shared for receiver in receivers if receiver.shared is not None)

    def core_rows(self) -> list[list[Any]]:
        """Return name, choice, share of FLOPs, bytes of core and gradient for each parameter that has a receiver."""
        rows = []
        for parameter, receiver in self._receivers.items():
            layout = receiver.layout
            row = costs(layout, parameter.element_size()) if isinstance(layout, MatrixLayout) else ("", "", "")
            rows.append([layout.name, receiver.describe(), *row])
        return rows

    # ---- memory

    def held_tensors(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (parameter, tensor) for all that is kept of gradients between two backward passes."""
        yield from self.window.tensors()
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
        return self.window.gradient_bytes({p: receiver.reason is None for p, receiver in self._receivers.items()})


def layerwise_handles(model: nn.Module) -> list[Layerwise]:
    """Return the updates whose hooks the parameters of a model carry."""
    return ownership.owners_of(Part.GRADIENT, model.parameters())


def core_receiver(
    parameter: Tensor, *, prefer: str, exact_refresh: bool, siblings: Sequence[Tensor] = ()
) -> CoreReceiver | None:
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
    return handle.core_receiver(parameter, prefer=prefer, exact_refresh=exact_refresh, siblings=siblings)


def _refuse_foreign_step(optimizer: Optimizer, has_closure: bool) -> None:
    """Refuse the step of an optimizer over parameters whose gradients another one has consumed layer-wise."""
    if torch.compiler.is_compiling():
        return
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


def _release(optimizer: "weakref.ref[LowRankOptimizer]", window: Window) -> None:
    """Make an optimizer that may still live an ordinary one."""
    window.is_closed = True
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
