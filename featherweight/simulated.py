"""The device whose step is simulated, for code that must follow it instead of the device of the tensors at hand.

While a step is simulated (`featherweight.memory.simulate`) there are shapes and lifetimes but no numbers, and every
tensor says that it is on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class SimulatedDevice(NamedTuple):
    """A kind of device whose step is simulated."""

    kind: str
    """cpu or cuda."""
    memory_bytes: int = 24 << 30
    """Size of its memory; chunks are larger where there is more."""


current: SimulatedDevice | None = None
"""The device whose step is being simulated, or None outside a simulation; set by `counting_only` alone."""


def device_kind(device: torch.device) -> str:
    """Return for which kind of device code should run: the tensors' own, or in a simulation the simulated one."""
    return device.type if current is None else current.kind


def simulated_device() -> SimulatedDevice | None:
    """Return the device whose step is being simulated, or None outside a simulation."""
    return current


@contextmanager
def counting_only(device: SimulatedDevice) -> Iterator[None]:
    """Let few tiles stand for all, and code run as on `device`, while the block runs."""
    global current
    before, current = current, device
    try:
        yield
    finally:
        current = before
