"""`layerwise`: each weight is updated inside the backward pass, and its gradient freed at once.

Without accumulation a hook makes the step of its parameter from the full gradient, with the same bits as
`optimizer.step()`. With accumulation it adds the gradient's projection to a small sum (`core_sum.py`) and makes
the step at the last micro-batch. A window is the `accumulation_steps` backward passes of one step (`window.py`).
Source: GaLore, arXiv 2403.03507, section 4.3; the treatment of accumulation, clipping and norms is ours.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from featherweight.errors import ConfigError, DeviceError
from featherweight.optim.backward.updates import Layerwise
from featherweight.optim.backward.window import Part, undisturbed
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.reduce import LocalReducer, Reducer, as_reducer, attached_reducer
from featherweight.unwrap import is_deepspeed, unwrap_optimizer

CLIP_MODES = ("delayed", "per_tensor", "norm_growth", "projected")


def layerwise(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    accumulation_steps: int = 1,
    max_grad_norm: float | None = None,
    clip: str = "delayed",
    reducer: Reducer | None = None,
) -> "LayerwiseHandle":
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
        reducer: averages gradients over processes; None for one process, and for a model that was given to
            `fw.distributed.shard`.
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
    inner, found = unwrap_optimizer(optimizer), attached_reducer(model) if reducer is None else as_reducer(reducer)
    _check(model, inner, accumulation_steps, max_grad_norm, clip, found)
    return LayerwiseHandle(Layerwise(model, inner, accumulation_steps, max_grad_norm, clip, found or LocalReducer()))


class LayerwiseHandle:
    """A running layer-wise optimizer; made by `layerwise`, see there. As a context manager it removes itself.

    The updates live as long as their optimizer and refer to it weakly, so they end with it even if nobody removes them.
    The handle holds both: whoever keeps the handle alone keeps its optimizer, too.
    """

    def __init__(self, updates: Layerwise) -> None:
        self._updates = updates
        self.optimizer: LowRankOptimizer = updates.optimizer
        """The optimizer that makes the updates."""

    @property
    def is_active(self) -> bool:
        """Whether backward passes still train the model."""
        return self.optimizer.layerwise is self._updates

    @property
    def steps(self) -> int:
        """Optimizer steps made."""
        return self._updates.window.steps

    @property
    def grad_norm(self) -> float | None:
        """Norm of the gradient of the last step, before clipping; see `Layerwise.grad_norm`."""
        return self._updates.grad_norm

    @property
    def accumulation_steps(self) -> int:
        """Backward passes of one optimizer step."""
        return self._updates.window.accumulation_steps

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self._updates.window.reducer.world_size

    @property
    def reducer(self) -> Reducer:
        """What averages over the processes."""
        return self._updates.window.reducer

    def exchange(self) -> None:
        """Make the steps of all parameters whose sums are complete, in parts of a step: they wait for others to travel.

        All processes call it at the same place; nothing happens in one process, where nothing waits.
        """
        with undisturbed(next(iter(self._updates.window))):
            self._updates.window.exchange()

    @property
    def clip(self) -> str:
        """How gradients are clipped."""
        return self._updates.window.clip

    @property
    def max_grad_norm(self) -> float | None:
        """Largest norm of the gradients; None for no limit."""
        return self._updates.window.max_grad_norm

    def remove(self) -> None:
        """Take all hooks away; the optimizer is an ordinary one again. May be called twice."""
        self._updates.remove()

    def attach(self) -> None:
        """Hang the hooks on the model again, after `remove`; nothing happens while they are there.

        Raises:
            ConfigError: if another optimizer has these parameters by now.
        """
        if not self.is_active:
            self._updates.attach()

    def discard(self) -> None:
        """Drop the micro-batches of the present window, for example after a loss that is not finite."""
        self._updates.discard()

    @contextmanager
    def parts(self) -> Iterator[Callable[[Part], None]]:
        """Make one optimizer step of backward passes that reach different parameters, and each one several times.

        Give what you get a `Part` before each backward pass; it says for which parameters it is the last one, and these
        make their update in it. At the end the step is counted; an exception drops what is still held.

        Raises:
            ConfigError: in the middle of a window.

        Example:
            >>> import featherweight as fw
            >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
            >>> handle = layerwise(model, fw.optim.AdamW(model.parameters()))
            >>> with handle.parts() as tell:
            ...     hidden = model[0](torch.ones(2, 8))
            ...     cut = hidden.detach().requires_grad_()
            ...     for row in range(2):
            ...         tell(Part(is_first=row == 0, is_last=row == 1))
            ...         model[1](cut[row]).sum().backward()
            ...     tell(Part(is_first=True, is_last=True))
            ...     hidden.backward(cut.grad)
            >>> handle.steps
            1
        """
        window = self._updates.window
        if window.micro_step or window.part is not None:
            raise ConfigError(
                f"layerwise: {window.micro_step} of {window.accumulation_steps} micro-batches of a window are there; "
                "expected none before a step in parts. Finish the window, or call discard()."
            )

        def tell(part: Part) -> None:
            window.part = part

        try:
            yield tell
            self._updates.end_window()
        except BaseException:
            self.discard()
            raise
        finally:
            window.part = None

    def held_tensors(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (parameter, tensor) for all that is kept of gradients between two backward passes."""
        return self._updates.held_tensors()

    def gradient_bytes(self) -> int:
        """Return the bytes of gradients at the peak of a step in which no matrix refreshes, by formula."""
        return self._updates.gradient_bytes()

    def core_rows(self) -> list[list[Any]]:
        """Return name, choice, share of FLOPs, bytes of core and gradient for each parameter that leaves cores."""
        return self._updates.core_rows()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.discard()
        self.remove()


def _check(
    model: nn.Module, inner: Any, accumulation_steps: Any, max_grad_norm: Any, clip: str, reducer: Reducer | None
) -> None:
    if not isinstance(inner, LowRankOptimizer):
        raise ConfigError(
            f"layerwise: optimizer={type(inner).__name__} cannot update single parameters; expected one of fw.optim. "
            "Use fw.optim.AdamW or a low-rank one."
        )
    if is_deepspeed(model):
        raise ConfigError(
            f"layerwise: model={type(model).__name__} is an engine of DeepSpeed, which keeps gradients in buckets of "
            "its own and makes the steps itself; expected an ordinary module. Give the bare model, after "
            'fw.distributed.shard(model, "fsdp2"), which does what ZeRO-3 does.'
        )
    if isinstance(model, DistributedDataParallel) or (reducer is None and _world_size() > 1):
        raise DeviceError(
            f"layerwise: world_size={_world_size()} processes train this {type(model).__name__}; expected one process, "
            "because DistributedDataParallel keeps every gradient in its buckets. Call "
            'fw.distributed.shard(model, "ddp") or "fsdp2" for the bare model first, or start without a launcher.'
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
    if max_grad_norm is not None and not (isinstance(max_grad_norm, Real) and float(max_grad_norm) > 0):
        raise ConfigError(
            f"layerwise: max_grad_norm={max_grad_norm!r} is not allowed; expected a number > 0, or None for no limit. "
            "Change max_grad_norm."
        )


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
