"""All that a piece of training allocates and frees, in order; and the same for more layers than were run.

A model of many equal layers repeats itself: one layer more inserts the same events at the same places, in the forward
pass, in the backward pass and in every loop of the optimizer over its parameters. `extend` compares the timelines of
two depths, finds what was inserted, and repeats it. The result is the timeline of the deep model, event by event, so
whichever moment is its peak is found, even one that is not the peak of the shallow ones.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from featherweight.memory.ledger import CATEGORIES, Allocation, Category, Entry, Phase

MARK = "mark"
"""Operator of an event that allocates nothing and says that a new step begins."""
SMALL_BYTES = 1 << 16
"""A storage of fewer bytes may grow with the number of layers: a list of norms has one element for each parameter."""
_SIGNS = ((24, True), (12, True), (6, True), (24, False), (3, True), (12, False), (1, True))
"""What an insertion is known by, the surest first: so many events after it are as expected; it repeats those before."""


class Event(NamedTuple):
    """The birth of a storage (positive bytes) or its end (negative)."""

    change_bytes: int
    """Bytes by which the sum of all storages changes."""
    category: Category
    """Role of the storage."""
    phase: Phase
    """Phase that allocated it."""
    op: str
    """Operator that allocated it; empty for what existed before."""
    module: str
    """Parameter or innermost module that it belongs to, with stars for the numbers of layers."""
    shape: tuple[int, ...]
    """Shape of the first tensor seen on the storage."""
    dtype: str
    """Its data type."""


@dataclass(frozen=True)
class Peak:
    """The moment when most bytes were alive."""

    size_bytes: int
    """Bytes alive."""
    index: int
    """Of the event that reached it; the first one if several did."""
    phase: Phase
    """Phase of that event."""
    by_category: dict[Category, int]
    """Bytes of each category; they add up to `size_bytes`."""


@dataclass(frozen=True)
class Timeline:
    """Events in order; sums begin at zero.

    Args:
        events: what was allocated and freed.
    """

    events: Sequence[Event]

    @classmethod
    def of_history(cls, history: Iterable[tuple[Entry, int]]) -> "Timeline":
        """Return what a ledger has kept; its roles are settled by now."""
        return cls(
            [
                Event(
                    change_bytes,
                    entry.category,
                    entry.phase,
                    _name(entry.op),
                    starred(entry.module),
                    tuple(entry.shape),
                    str(entry.dtype),
                )
                for entry, change_bytes in history
                if change_bytes or entry.op == MARK
            ]
        )

    def rounded(self, block_bytes: int) -> "Timeline":
        """Return the timeline of an allocator whose blocks are multiples of so many bytes."""

        def blocks(change: int) -> int:
            return change + (-change % block_bytes if change > 0 else -(change % block_bytes))

        return Timeline([_sized(one, blocks(one.change_bytes)) for one in self.events])

    @cached_property
    def live_bytes(self) -> list[int]:
        """Bytes alive after each event."""
        return list(itertools.accumulate(event.change_bytes for event in self.events))

    @cached_property
    def marks(self) -> list[int]:
        """Indices of the events at which steps begin."""
        return [index for index, event in enumerate(self.events) if event.op == MARK]

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at one moment."""
        return max(self.live_bytes, default=0)

    def peak(self, step: int | None = None) -> Peak:
        """Return the moment when most bytes were alive.

        Args:
            step: look only into this step, from 1; None looks everywhere.
        """
        begin, end = 0, len(self.events)
        if step is not None:
            bounds = [*self.marks, end]
            begin, end = bounds[step - 1], bounds[step]
        index = max(range(begin, end), key=self.live_bytes.__getitem__)
        totals = dict.fromkeys(CATEGORIES, 0)
        for event in self.events[: index + 1]:
            totals[event.category] += event.change_bytes
        return Peak(self.live_bytes[index], index, self.events[index].phase, totals)

    def max_by_category(self, step: int | None = None) -> dict[Category, int]:
        """Return each category's own maximum, everywhere or in one step."""
        bounds = [*self.marks, len(self.events)]
        begin, end = (0, len(self.events)) if step is None else (bounds[step - 1], bounds[step])
        totals = dict.fromkeys(CATEGORIES, 0)
        maxima = dict.fromkeys(CATEGORIES, 0)
        for index, event in enumerate(self.events[:end]):
            totals[event.category] += event.change_bytes
            if index == begin:
                maxima = dict(totals)
            maxima[event.category] = max(maxima[event.category], totals[event.category])
        return maxima

    def alive_at(self, index: int) -> list[tuple[Allocation, int]]:
        """Return the storages alive after an event and how many there are of each kind, the most bytes first."""
        born: Counter[Event] = Counter()
        for event in self.events[: index + 1]:
            if event.change_bytes:
                born[_sized(event, abs(event.change_bytes))] += 1 if event.change_bytes > 0 else -1
        found = [
            (Allocation(one.change_bytes, one.category, one.phase, one.op, one.module, one.shape, one.dtype), count)
            for one, count in born.items()
            if count > 0
        ]
        return sorted(found, key=lambda pair: -pair[0].size_bytes * pair[1])

    def series(self, points: int = 400) -> dict[Category, list[int]]:
        """Return the bytes of each category at about so many moments, the peak among them, for a picture."""
        stride, peak_index = max(1, len(self.events) // points), self.peak().index if self.events else 0
        totals = dict.fromkeys(CATEGORIES, 0)
        series: dict[Category, list[int]] = {category: [] for category in CATEGORIES}
        for index, event in enumerate(self.events):
            totals[event.category] += event.change_bytes
            if index % stride == 0 or index == peak_index:
                for category in CATEGORIES:
                    series[category].append(totals[category])
        return series

    def numbered(self) -> list[tuple[int, int]]:
        """Return (number, bytes) of each event, with one number for the birth and the end of a storage.

        What an allocator sees. Of equal storages the youngest ends first, as in a backward pass.
        """
        numbers = itertools.count()
        alive: dict[Event, list[int]] = defaultdict(list)
        pairs = []
        for event in self.events:
            key = _sized(event, abs(event.change_bytes))
            if event.change_bytes > 0:
                alive[key].append(next(numbers))
                pairs.append((alive[key][-1], event.change_bytes))
            elif event.change_bytes < 0:
                pairs.append((alive[key].pop(), event.change_bytes))
        return pairs


def extend(shallow: Timeline, deep: Timeline, more: int, *, must_repeat: bool = True) -> Timeline | None:
    """Return the timeline of a deep model from those of two shallow ones.

    Args:
        shallow: of a model of at least two layers, the first and the last.
        deep: of the same with one layer more.
        more: how many layers more than `shallow` the model in question has.
        must_repeat: every event of the layer more stands in the layer before too; else that one may be different, and
            the result may be off.
    Returns:
        The timeline; None if the two do not differ by repeated events alone.
    Cost: O(events of the result).
    """
    short, long = [_token(event) for event in shallow.events], [_token(event) for event in deep.events]
    events: list[Event] = []
    i = j = 0
    while i < len(short) or j < len(long):
        if i < len(short) and j < len(long) and short[i] == long[j]:
            events.append(_grown(shallow.events[i], deep.events[j], more))
            i, j = i + 1, j + 1
            continue
        period = _inserted(short, long, i, j, must_repeat)
        if period is None:
            return None
        events.extend(list(deep.events[j : j + period]) * more)
        j += period
    result = Timeline(events)
    return result if min(result.live_bytes, default=0) >= 0 else None


def _token(event: Event) -> tuple[object, ...]:
    """Return what is equal in equal layers."""
    size = event.change_bytes
    rough = size > 0 if abs(size) < SMALL_BYTES else size
    return (rough, event.op, event.category, event.module, event.dtype, len(event.shape))


def _grown(shallow: Event, deep: Event, more: int) -> Event:
    growth = deep.change_bytes - shallow.change_bytes
    return _sized(shallow, shallow.change_bytes + more * growth)


def _inserted(
    short: list[tuple[object, ...]], long: list[tuple[object, ...]], i: int, j: int, strictly: bool
) -> int | None:
    """Return how many events the deep timeline has from j on that the shallow one has not at i.

    What is inserted repeats the events before it, those of another layer, unless that one is the first or last; and
    after it both go on alike, for a while at least: the next insertion may be near.
    """
    at_most = (len(long) - j) - (len(short) - i)
    if i == len(short):
        return at_most
    for length, must_repeat in _SIGNS:
        if strictly and not must_repeat:
            continue
        rest = short[i : i + length]
        for period in range(1, at_most + 1):
            goes_on = long[j + period : j + period + len(rest)] == rest
            if goes_on and (not must_repeat or long[max(0, j - period) : j] == long[j : j + period]):
                return period
    return None


def _sized(event: Event, change_bytes: int) -> Event:
    """Return an event with so many bytes; `_replace` takes three times as long, and timelines are long."""
    return event if event.change_bytes == change_bytes else Event(change_bytes, *event[1:])


@cache
def _name(op: object) -> str:
    return str(op)


@cache
def starred(path: str) -> str:
    """Return a module's path with stars for its numbers.

    Example:
        >>> starred("model.layers.11.mlp.down_proj.weight")
        'model.layers.*.mlp.down_proj.weight'
    """
    return ".".join("*" if part.isdigit() else part for part in path.split("."))
