"""Measured delay without a common clock.

Each frame echoes the newest stamp of the other side and says how long it was held, so both sides know the round trip.
The sample with the smallest round trip of the last ten seconds gives the offset of the clocks (the rule of NTP), and
with it the one-way age of every frame, uncertain by half of that round trip.
"""

from collections import deque
from dataclasses import dataclass

WINDOW_NS = 10_000_000_000
MIN_SAMPLES = 3
"""Round trips before an age counts as known."""
JUMP_NS = 2_000_000_000
"""An age beyond this, or as far in the future, means that a clock jumped."""


class ClockEstimate:
    """Offset and round trip to one other side; times in nanoseconds of the own monotonic clock."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int, int]] = deque()
        self._count = 0
        self._best: tuple[int, int, int] | None = None

    def reset(self) -> None:
        """Forget everything: the other side's clock jumped."""
        self._samples.clear()
        self._best, self._count = None, 0

    @property
    def is_known(self) -> bool:
        """Whether there were enough round trips."""
        return self._count >= MIN_SAMPLES and self._best is not None

    @property
    def round_trip_min_ns(self) -> int:
        """Smallest round trip of the window; 0 before the first."""
        return self._best[1] if self._best else 0

    @property
    def uncertainty_ns(self) -> int:
        """Largest error of an age."""
        return self.round_trip_min_ns // 2

    def add(self, now_ns: int, sent_ns: int, echo_ns: int, hold_us: int) -> int | None:
        """Take a frame's stamps; return its round trip, or None if it echoes nothing plausible.

        Args:
            now_ns: when the frame came, on the own clock.
            sent_ns: its `sent_ns`, on the other clock.
            echo_ns: its `echo_ns`, on the own clock.
            hold_us: its `hold_us`.
        """
        if echo_ns <= 0 or echo_ns > now_ns or now_ns - echo_ns > WINDOW_NS:
            return None
        round_trip_ns = now_ns - echo_ns - hold_us * 1000
        if round_trip_ns < 0:
            return None
        sample = (now_ns, round_trip_ns, now_ns - sent_ns - round_trip_ns // 2)
        # A queue of rising round trips: its first one is the smallest of the window.
        while self._samples and self._samples[-1][1] >= round_trip_ns:
            self._samples.pop()
        self._samples.append(sample)
        self._count += 1
        self._forget_old(now_ns)
        return round_trip_ns

    def age_ns(self, now_ns: int, sent_ns: int) -> int | None:
        """Return how long ago a frame was sent; None while that is not known. May be a little negative."""
        self._forget_old(now_ns)
        return now_ns - (sent_ns + self._best[2]) if self.is_known and self._best else None

    def _forget_old(self, now_ns: int) -> None:
        while self._samples and now_ns - self._samples[0][0] > WINDOW_NS:
            self._samples.popleft()
        self._best = self._samples[0] if self._samples else None


@dataclass
class Percentiles:
    """Of a delay, in milliseconds."""

    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


class DelayStatistics:
    """Round trip, age, jitter, loss and reordering of the last frames.

    Args:
        window: frames.
    """

    def __init__(self, window: int = 1000) -> None:
        self._round_trips_ns: deque[int] = deque(maxlen=window)
        self._ages_ns: deque[int] = deque(maxlen=window)
        self._first = self._highest = -1
        self.received = self.reordered = 0

    def add(self, sequence: int, round_trip_ns: int | None, age_ns: int | None) -> None:
        """Take one frame."""
        self.received += 1
        if self._first < 0:
            self._first = sequence
        if sequence < self._highest:
            self.reordered += 1
        self._highest = max(self._highest, sequence)
        if round_trip_ns is not None:
            self._round_trips_ns.append(round_trip_ns)
        if age_ns is not None:
            self._ages_ns.append(age_ns)

    @property
    def lost(self) -> int:
        """Sequence numbers that are missing up to now."""
        return max(0, self._highest - self._first + 1 - self.received) if self._first >= 0 else 0

    @property
    def round_trip_ms(self) -> Percentiles:
        """Of the last frames."""
        return _percentiles(self._round_trips_ns)

    @property
    def age_ms(self) -> Percentiles:
        """Of the last frames."""
        return _percentiles(self._ages_ns)

    @property
    def jitter_ms(self) -> float:
        """Difference of the 95th and the 5th percentile of the ages, the depth that a playout buffer would need."""
        ages = sorted(self._ages_ns)
        return (ages[int(0.95 * (len(ages) - 1))] - ages[int(0.05 * (len(ages) - 1))]) / 1e6 if ages else 0.0


def _percentiles(values: "deque[int]") -> Percentiles:
    ordered = sorted(values)
    if not ordered:
        return Percentiles()
    return Percentiles(
        *(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6 for share in (0.5, 0.95, 0.99))
    )
