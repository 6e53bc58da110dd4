"""Cuts long tensors into tiles, and knows when tiles are only counted.

Whoever works tile by tile bounds its temporaries. While a step is simulated (`featherweight.memory.simulate`) there are
shapes and lifetimes but no numbers, and two equal tiles need the same memory; so a few tiles then stand for all of
them, and the code of another kind of device may be followed than that of the tensors at hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Device(NamedTuple):
    """A kind of device whose step is simulated."""

    kind: str
    """cpu or cuda."""
    memory_bytes: int | None = None
    """Size of its memory, or None where code need not know."""


_simulated: Device | None = None


def tiles(length: int, size: int, *, first: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive runs that cover [first, first + length), cut at multiples of `size`.

    In a simulation only the first two and the last of many runs are yielded: what is alive in the second one, the rest
    of the one before included, is what is alive in every whole one after it.

    Args:
        length: elements (or rows) to cover.
        size: of a run, >= 1.
        first: where to begin.
    Example:
        >>> list(tiles(5, 2)), list(tiles(5, 4, first=3))
        ([(0, 2), (2, 4), (4, 5)], [(3, 4), (4, 8)])
    """
    end, start, behind = first + length, first, 0
    while start < end:
        stop = min(end, (start // size + 1) * size)
        yield start, stop
        start, behind = stop, behind + 1
        if _simulated is not None and behind == 2:
            start = max(start, (end - 1) // size * size)


def device_kind(device: torch.device) -> str:
    """Return for which kind of device code should run: the tensors' own, or in a simulation the simulated one."""
    return device.type if _simulated is None else _simulated.kind


def simulated_device() -> Device | None:
    """Return the device whose step is being simulated, or None outside a simulation."""
    return _simulated


@contextmanager
def counting_only(device: Device) -> Iterator[None]:
    """Let few tiles stand for all, and code run as on `device`, while the block runs."""
    global _simulated
    before, _simulated = _simulated, device
    try:
        yield
    finally:
        _simulated = before
