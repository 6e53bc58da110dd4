"""The books of a memory measurement: what is allocated now, at the peak, and by category.

Pure bookkeeping in Python integers; `featherweight.memory.tracker` feeds it with what torch allocates and frees.

A storage often shows its role only later: the output of a matrix product becomes a gradient, a zero tensor becomes a
moment. So an entry may be relabelled, and until `settle` the new role holds from its birth: a first optimizer step
shows moments, not temporaries that turned into moments. Once settled, a change of role is booked when it happens.
"""

import dataclasses
from typing import Literal, get_args

Category = Literal[
    "weights", "buffers", "gradients", "optimizer_state", "activations", "temporaries", "inputs", "other"
]
Phase = Literal["forward", "backward", "optimizer", "other"]

CATEGORIES: tuple[Category, ...] = get_args(Category)

RANK: dict[Category, int] = {
    "other": 0,
    "inputs": 1,
    "temporaries": 1,
    "activations": 1,
    "optimizer_state": 2,
    "gradients": 3,
    "buffers": 4,
    "weights": 5,
}
"""A storage changes its role only upwards: what is once known as a weight is never taken for optimizer state."""

# About 10 MB of events; an ordinary training step has a tenth of them and is settled as one piece.
_LONGEST_LOG = 50_000


@dataclasses.dataclass(frozen=True)
class Allocation:
    """One storage that was alive at the peak."""

    size_bytes: int
    """Bytes, after the tracker's rounding."""
    category: Category
    """Role of the storage."""
    phase: Phase
    """Phase that allocated it; "other" for what existed before."""
    op: str
    """Operator that allocated it, such as ``aten.mm.default``; empty for what existed before."""
    module: str
    """Name of the parameter, or else path of the innermost module that was running; empty outside modules."""
    shape: tuple[int, ...]
    """Shape of the first tensor seen on the storage."""
    dtype: str
    """Its data type, such as ``torch.float32``."""


class Entry:
    """One storage in the books, from its allocation to its end."""

    __slots__ = ("size_bytes", "category", "phase", "op", "module", "shape", "dtype", "birth", "region", "settled")

    def __init__(
        self,
        size_bytes: int,
        category: Category,
        phase: Phase = "other",
        op: object = "",
        module: str = "",
        shape: tuple[int, ...] = (),
        dtype: object = "",
    ) -> None:
        self.size_bytes = size_bytes
        self.category: Category = category
        self.phase: Phase = phase
        self.op = op  # turned into text only for a report: str() of an operator costs more than the rest of an entry
        self.module = module
        self.shape = shape
        self.dtype = dtype
        self.birth = -1  # set when the entry is opened
        self.region = 0
        self.settled = False

    def successor(self, *, size_bytes: int, category: Category) -> "Entry":
        """Return an unopened entry for the same storage with another size or role."""
        return Entry(size_bytes, category, self.phase, self.op, self.module, self.shape, self.dtype)

    def describe(self) -> Allocation:
        """Return the entry as plain values."""
        return Allocation(
            size_bytes=self.size_bytes,
            category=self.category,
            phase=self.phase,
            op=str(self.op),
            module=self.module,
            shape=tuple(self.shape),
            dtype=str(self.dtype),
        )


class Ledger:
    """Adds up entries; every method costs O(1) unless it says otherwise.

    Args:
        keep_history: keep every event in `history`, not only what the books need.

    Invariant: ``live_bytes == sum(live_by_category.values())`` and ``peak_bytes == sum(peak_by_category.values())``.

    Example:
        >>> ledger = Ledger()
        >>> weight, output = Entry(100, "weights"), Entry(40, "activations", phase="forward")
        >>> for entry in (weight, output):
        ...     ledger.open(entry)
        >>> ledger.close(output)
        >>> ledger.live_bytes, ledger.peak_bytes, ledger.peak_phase
        (100, 140, 'forward')
    """

    def __init__(self, keep_history: bool = False) -> None:
        self.history: list[tuple[Entry, int]] | None = [] if keep_history else None
        """Every storage at its birth (bytes) and at its end (minus bytes), in order."""
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_phase: Phase = "other"
        self._clock = 0
        self._region = 0
        self._live: dict[int, Entry] = {}  # by birth, hence in order of birth
        # Who was alive at the peak follows from births and deaths alone, so a new peak costs no copy of the live set:
        # all that was born until then, less what was closed before. `_closed_since_peak` keeps those that died later.
        self._peak_clock = 0
        self._closed_since_peak: list[Entry] = []
        self._log: list[tuple[Entry, int]] = []
        self._settled_totals = dict.fromkeys(CATEGORIES, 0)
        self._settled_maxima = dict.fromkeys(CATEGORIES, 0)

    def open(self, entry: Entry) -> None:
        """Book a new storage."""
        self._clock += 1
        entry.birth = self._clock
        entry.region = self._region
        self._live[entry.birth] = entry
        self._record(entry, entry.size_bytes)
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self.peak_phase = entry.phase
            self._peak_clock = self._clock
            self._closed_since_peak.clear()
        if len(self._log) > _LONGEST_LOG:
            self.settle()

    def close(self, entry: Entry) -> None:
        """Book the end of a storage; an activation that no backward pass has seen turns out to be a temporary."""
        if self._live.pop(entry.birth, None) is None:
            return
        if entry.category == "activations" and entry.region == self._region and not entry.settled:
            entry.category = "temporaries"
        self._record(entry, -entry.size_bytes)
        if entry.birth <= self._peak_clock:
            self._closed_since_peak.append(entry)

    def _record(self, entry: Entry, change_bytes: int) -> None:
        self._log.append((entry, change_bytes))
        if self.history is not None:
            self.history.append((entry, change_bytes))
        self.live_bytes += change_bytes

    def relabel(self, entry: Entry, category: Category, module: str) -> Entry:
        """Give a live storage another role; return the entry that stands for it from now on."""
        if not entry.settled:
            entry.category = category
            entry.module = module
            return entry
        successor = entry.successor(size_bytes=entry.size_bytes, category=category)
        successor.module = module
        self.close(entry)
        self.open(successor)
        return successor

    def resize(self, entry: Entry, size_bytes: int) -> Entry:
        """Change the size of a live storage; return the entry that stands for it from now on."""
        successor = entry.successor(size_bytes=size_bytes, category=entry.category)
        self.close(entry)
        self.open(successor)
        return successor

    def end_forward(self) -> None:
        """A backward pass begins: activations that are alive now stay activations."""
        self._region += 1

    def settle(self) -> None:
        """Fix the roles of all that has happened, in one pass over the events since the last time."""
        self._settled_totals, self._settled_maxima = self._replay()
        for entry, _ in self._log:
            entry.settled = True
        self._log.clear()

    def reset_peak(self) -> None:
        """Forget all maxima: the peak starts again from what is alive now. O(live)."""
        self.settle()
        self._settled_maxima = dict(self._settled_totals)
        self.peak_bytes = self.live_bytes
        self.peak_phase = "other"
        self._peak_clock = self._clock
        self._closed_since_peak.clear()

    @property
    def live_by_category(self) -> dict[Category, int]:
        """Bytes alive now. O(live)."""
        return _totals(list(self._live.values()))

    @property
    def peak_by_category(self) -> dict[Category, int]:
        """Bytes of each category at the moment of the overall peak. O(live)."""
        return _totals(self.entries_at_peak())

    @property
    def max_by_category(self) -> dict[Category, int]:
        """The own maximum of each category, each at its own moment. O(events since `settle`)."""
        return self._replay()[1]

    def entries_at_peak(self) -> list[Entry]:
        """Return all that was alive at the overall peak, in no particular order. O(live)."""
        survivors = [entry for entry in list(self._live.values()) if entry.birth <= self._peak_clock]
        return survivors + self._closed_since_peak

    def _replay(self) -> tuple[dict[Category, int], dict[Category, int]]:
        totals = dict(self._settled_totals)
        maxima = dict(self._settled_maxima)
        for entry, change_bytes in self._log:
            total = totals[entry.category] + change_bytes
            totals[entry.category] = total
            if total > maxima[entry.category]:
                maxima[entry.category] = total
        return totals, maxima


def _totals(entries: list[Entry]) -> dict[Category, int]:
    totals = dict.fromkeys(CATEGORIES, 0)
    for entry in entries:
        totals[entry.category] += entry.size_bytes
    return totals
