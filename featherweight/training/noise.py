"""Random numbers of computations that are repeated: the dropout of the repetition is that of the first time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Noise:
    """Notes where the random numbers stood before a computation, and draws the same ones when it is repeated.

    Args:
        model: nothing is noted for one that draws none: in evaluation, or without dropout.
        device: whose generator it draws from, beside that of the CPU.

    Example:
        >>> layer = nn.Dropout(0.5)
        >>> noise = Noise(layer)
        >>> noise.note("first")
        >>> first = layer(torch.ones(64))
        >>> with noise.again("first"):
        ...     torch.equal(layer(torch.ones(64)), first)
        True
    """

    def __init__(self, model: Any, device: torch.device | None = None) -> None:
        options: dict[str, Any] = model.config.to_dict() if hasattr(model, "config") else {}
        drops = any("drop" in name and isinstance(p, float) and p > 0 for name, p in options.items())
        drops = drops or any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        self.is_needed = model.training and drops
        """Whether the model draws anything."""
        self._device = torch.device("cpu") if device is None else device
        self._states: dict[Any, tuple[Tensor, Tensor | None]] = {}

    def note(self, key: Any) -> None:
        """Note the state before a computation."""
        if self.is_needed:
            cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
            self._states[key] = (torch.get_rng_state(), cuda)

    @contextmanager
    def again(self, key: Any) -> Iterator[None]:
        """Draw what was drawn from that state on, and leave the generators as they are."""
        if not self.is_needed:
            yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            state, cuda = self._states.pop(key)
            torch.set_rng_state(state)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self._device)
            yield
