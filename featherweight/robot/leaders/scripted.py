"""A leader that follows a script."""

import time
from collections.abc import Callable, Iterable, Sequence

from featherweight.robot.contract import Action, Teleoperator, keyed_angles

Script = Callable[[float], Sequence[float] | None]


class ScriptedLeader(Teleoperator):
    """Gives the angles of a function of time, or of a sequence at a rate.

    Args:
        script: takes seconds since `connect` and returns (6,) degrees, or None for no command; or an iterable of (6,)
            degrees, whose last item stays.
        rate_hz: of the items of an iterable.
        id: name.
        clock: time in seconds; another one lets a script run in virtual time.
    Example:
        >>> with ScriptedLeader(lambda time_s: (10, 0, 0, 0, 0, 0)) as leader:
        ...     leader.get_action()["shoulder_pan.pos"]
        10.0
    """

    name = "scripted"

    def __init__(
        self,
        script: Script | Iterable[Sequence[float]],
        rate_hz: float = 30.0,
        id: str = "scripted",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = id
        self._clock = clock
        self._script = script if callable(script) else None
        self._items = None if callable(script) else iter(script)
        self._rate_hz = rate_hz
        self._start_s: float | None = None
        self._taken = 0
        self._item: Sequence[float] | None = None
        self.is_finished = False

    @property
    def is_connected(self) -> bool:
        """Whether the script runs."""
        return self._start_s is not None

    def connect(self, calibrate: bool = True) -> None:
        """Start the script's clock."""
        if self._start_s is None:
            self._start_s = self._clock()

    def disconnect(self) -> None:
        """Stop the script's clock."""
        self._start_s = None

    def get_action(self) -> Action | None:
        """Return the angles of now."""
        self._require_connection("get_action")
        assert self._start_s is not None
        time_s = self._clock() - self._start_s
        if self._script is not None:
            angles = self._script(time_s)
            return None if angles is None else keyed_angles(angles)
        assert self._items is not None
        while self._taken <= time_s * self._rate_hz and not self.is_finished:
            item = next(self._items, None)
            self.is_finished = item is None
            self._item, self._taken = item if item is not None else self._item, self._taken + 1
        return None if self._item is None else keyed_angles(self._item)
