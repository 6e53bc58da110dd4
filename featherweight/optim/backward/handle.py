"""What `layerwise` gives to its user: counters, the norm of the gradient, and the end of the updates.

The updates (`updates.py`) live as long as their optimizer and refer to it weakly; so they end with it at once, even
if nobody removes them. The handle holds both: whoever keeps the handle alone keeps its optimizer, too.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from featherweight.optim.backward.updates import Layerwise
from featherweight.optim.low_rank import LowRankOptimizer


class LayerwiseHandle:
    """A running layer-wise optimizer; made by `layerwise`, see there. As a context manager it removes itself."""

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
