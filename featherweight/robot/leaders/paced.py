"""A leader that plays a list of angles, but only while the follower is with it.

While the arm catches up (SYNC) or is held, the list waits where it is; so a demonstration, a replay or a policy begins
at its beginning, and goes on where it was after a pause.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from featherweight.robot.contract import Action, Teleoperator, keyed_angles


class PacedLeader(Teleoperator):
    """Plays angles at a rate while it is allowed to.

    Args:
        items: (6,) degrees each; the last one stays.
        rate_hz: items a second.
        clock: time in seconds.
        id: name.
    """

    name = "paced"

    def __init__(
        self,
        items: Iterable[Sequence[float]],
        rate_hz: float,
        clock: Callable[[], float] = time.monotonic,
        id: str = "paced",
    ) -> None:
        self.id = id
        self.is_finished = False
        self.played_s = 0.0
        """Time for which the list was played."""
        self._items, self._rate_hz, self._clock = iter(items), rate_hz, clock
        self._item: Sequence[float] | None = None
        self._taken = 0
        self._last_s: float | None = None
        self._is_connected = False

    @property
    def is_connected(self) -> bool:
        """Whether the list may be played."""
        return self._is_connected

    def connect(self, calibrate: bool = True) -> None:
        """Begin; the first item is given until `play` lets time pass."""
        self._is_connected = True

    def disconnect(self) -> None:
        """End."""
        self._is_connected = False

    def play(self, is_active: bool) -> None:
        """Say whether the follower is with the leader; to be called in every control step."""
        now_s = self._clock()
        if self._last_s is not None and is_active:
            self.played_s += now_s - self._last_s
        self._last_s = now_s if is_active else None

    def get_action(self) -> Action | None:
        """Return the angles of now."""
        self._require_connection("get_action")
        # A time that is a whole number of items belongs to the later one, whatever its rounding.
        while self._taken <= self.played_s * self._rate_hz + 1e-6 and not self.is_finished:
            item = next(self._items, None)
            self.is_finished = item is None
            self._item, self._taken = item if item is not None else self._item, self._taken + 1
        return None if self._item is None else keyed_angles(self._item)
