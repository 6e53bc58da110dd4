"""Cuts long tensors into tiles, and knows when tiles are only counted.

Whoever works tile by tile bounds its temporaries. In a simulation two equal tiles need the same memory, so a few tiles
then stand for all of them.
"""

from collections.abc import Iterator

from featherweight.simulated import simulated_device

_repetitions = 1


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
    if simulated_device() is not None:
        yield from _few_tiles(length, size, first)
        return
    start, end = first, first + length
    while start < end:
        stop = min(end, (start // size + 1) * size)
        yield start, stop
        start = stop


def _few_tiles(length: int, size: int, first: int) -> Iterator[tuple[int, int]]:
    global _repetitions
    edges = [first, *range((first // size + 1) * size, first + length, size), first + length] if length else []
    runs = list(zip(edges, edges[1:], strict=False))
    for index in sorted({0, 1, len(runs) - 1}.intersection(range(len(runs)))):
        skipped = len(runs) - 3 if index == 1 and len(runs) > 3 else 0
        _repetitions *= 1 + skipped
        try:
            yield runs[index]
        finally:
            _repetitions //= 1 + skipped


def repetitions() -> int:
    """Return how many tiles the present one stands for; 1 outside a simulation."""
    return _repetitions
