"""Who drives a shared robot: one after the other, each for a slice of time if others wait. It knows no network."""

from collections.abc import Callable


class Turns:
    """The queue of one robot.

    Args:
        slice_s: how long a turn lasts while others wait.
        clock: time in seconds.
    """

    def __init__(self, slice_s: float, clock: Callable[[], float]) -> None:
        self._slice_s, self._clock = slice_s, clock
        self._names: list[str] = []
        self._since_s = 0.0

    @property
    def driver(self) -> str | None:
        """Whose turn it is now."""
        self._advance()
        return self._names[0] if self._names else None

    @property
    def left_s(self) -> float:
        """Time that is left of the turn; it runs while others wait."""
        self._advance()
        return max(0.0, self._slice_s - (self._clock() - self._since_s)) if self._names else 0.0

    def place(self, name: str) -> int | None:
        """Return how many are before somebody, 0 for whose turn it is; None for who does not wait."""
        self._advance()
        return self._names.index(name) if name in self._names else None

    def ask(self, name: str) -> None:
        """Wait for a turn; who waits already keeps the place."""
        self._advance()
        if name not in self._names:
            self._names.append(name)
            if len(self._names) <= 2:
                # The first turn begins, or somebody begins to wait, from when on it is limited.
                self._since_s = self._clock()

    def leave(self, name: str) -> None:
        """Wait no more, or give the turn back."""
        self._advance()
        if name in self._names:
            is_driver = self._names[0] == name
            self._names.remove(name)
            if is_driver:
                self._since_s = self._clock()

    def _advance(self) -> None:
        now_s = self._clock()
        while len(self._names) > 1 and now_s - self._since_s >= self._slice_s:
            # Whose turn is over waits behind the others.
            self._names.append(self._names.pop(0))
            self._since_s += self._slice_s
