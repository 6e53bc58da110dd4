"""Which rows of a split stand in which micro-batch: shuffled, mixed from several sources, or grouped by length.

Every order is a function of the place of a micro-batch, so that a resumed run finds its place without drawing what came
before. Without weights and lengths it is that of `featherweight.training.order.shuffled_rows`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.training.order import shuffled_rows

WINDOW = 50
"""Micro-batches whose rows are sorted by length together; more group better, fewer leave more to chance."""
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class RowOrder:
    """How training rows are drawn."""

    sources: Sequence[Sequence[int]]
    """The rows of each source; together every row once."""
    weights: Sequence[float] | None = None
    """How often a row comes from each source; None draws every row once in an epoch."""
    lengths: Sequence[int] | None = None
    """Length of each row, to put rows of like length together; None leaves the order to chance."""


def micro_batch_rows(
    numbers: Iterable[int], order: RowOrder, *, micro_batch_size: int, seed: int
) -> Iterator[list[int]]:
    """Yield the rows of each micro-batch.

    Args:
        numbers: of the micro-batches, rising.
        order: how rows are drawn.
        micro_batch_size: rows of each.
        seed: all that is random follows from (seed, place).
    Cost: the order of one epoch of each source is kept; with weights a start at place n takes n numbers.
    """
    if order.lengths is None:
        return _drawn(numbers, order, micro_batch_size, seed)
    return _grouped(numbers, order, micro_batch_size, seed)


def _drawn(numbers: Iterable[int], order: RowOrder, size: int, seed: int) -> Iterator[list[int]]:
    if order.weights is None:
        count = sum(len(source) for source in order.sources)
        return shuffled_rows(numbers, micro_batch_size=size, row_count=count, seed=seed)
    return _mixed(numbers, order.sources, Mixture(order.weights, seed), size, seed)


class Mixture:
    """From which source each row comes: shares that hold over any stretch, not over a whole epoch alone.

    Place n gets the source in whose part of [0, 1) the number ``frac(offset + n / golden ratio)`` falls. That sequence
    fills the interval evenly, so after n rows a source has had its share of them within a few rows.

    Args:
        weights: of the sources, above 0.
        seed: gives the offset.
    Example:
        >>> np.bincount(Mixture([3, 1], seed=0).sources(0, 1000)).tolist()
        [750, 250]
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self._edges = np.cumsum(weights) / np.sum(weights)
        self._edges[-1] = 1.0
        self._offset = np.random.default_rng([seed, len(weights)]).random()

    def sources(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the number of the source of each place in start..stop-1."""
        places = (self._offset + np.arange(start, stop) * _GOLDEN) % 1.0
        return np.searchsorted(self._edges, places, side="right")

    def counts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return how many of the places start..stop-1 each source has."""
        found = np.zeros(len(self._edges), dtype=np.int64)
        for first in range(start, stop, 2**20):
            found += np.bincount(self.sources(first, min(stop, first + 2**20)), minlength=len(found))
        return found


def _mixed(
    numbers: Iterable[int], sources: Sequence[Sequence[int]], mixture: Mixture, size: int, seed: int
) -> Iterator[list[int]]:
    """Yield rows of sources by their shares; each source has epochs of its own."""
    place, drawn = 0, np.zeros(len(sources), dtype=np.int64)
    streams: list[_Epochs] = [_Epochs(len(source), seed, number) for number, source in enumerate(sources)]
    for number in numbers:
        start = number * size
        drawn += mixture.counts(place, start)
        rows = []
        for source in mixture.sources(start, start + size).tolist():
            rows.append(sources[source][streams[source].row(int(drawn[source]))])
            drawn[source] += 1
        place = start + size
        yield rows


class _Epochs:
    """The rows of one source, shuffled anew in each epoch."""

    def __init__(self, count: int, seed: int, source: int) -> None:
        self._count, self._key = count, [seed, source]
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def row(self, place: int) -> int:
        epoch, index = divmod(place, self._count)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([*self._key, epoch]).permutation(self._count)
        return int(self._order[index])


def _grouped(numbers: Iterable[int], order: RowOrder, size: int, seed: int) -> Iterator[list[int]]:
    """Yield rows of like length together: windows of micro-batches are sorted, and their micro-batches shuffled.

    The longest micro-batch of all comes first, so that memory that does not suffice shows in the first step.
    """
    assert order.lengths is not None
    count = sum(len(source) for source in order.sources)
    width = max(1, min(WINDOW, count // size))
    current, window = -1, []
    for number in numbers:
        if number // width != current:
            current = number // width
            window = _window(current, width, order, size, seed)
        yield window[number % width]


def _window(place: int, width: int, order: RowOrder, size: int, seed: int) -> list[list[int]]:
    assert order.lengths is not None
    lengths = order.lengths
    drawn = list(_drawn(range(place * width, (place + 1) * width), order, size, seed))
    rows = [row for one in drawn for row in one]
    if order.weights is None:
        # A row may come twice where a window spans two epochs: each epoch is sorted by itself.
        first = len(rows) - (((place + 1) * width * size) % sum(len(source) for source in order.sources))
        edge = first if 0 < first < len(rows) else 0
        rows = [*_by_length(rows[:edge], lengths), *_by_length(rows[edge:], lengths)]
    else:
        rows = _by_length(rows, lengths)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    shuffled = [batches[index] for index in np.random.default_rng([seed, place, width]).permutation(width)]
    if place == 0:
        longest = max(range(width), key=lambda one: max(lengths[row] for row in shuffled[one]))
        shuffled[0], shuffled[longest] = shuffled[longest], shuffled[0]
    return shuffled


def _by_length(rows: list[int], lengths: Sequence[int]) -> list[int]:
    return sorted(rows, key=lambda row: -lengths[row])
