"""The playout buffer: commands that come unevenly are played evenly, a little later.

Each command has the time at which it was sent, by the follower's clock. The buffer plays the leader's motion as it was
some delay ago, between two commands by interpolation: the delay is the age that 95 of 100 commands keep below, so what
comes earlier waits and hardly anything comes too late. On a network without jitter the delay is nothing: the newest
command counts at once.
"""

from collections import deque
from itertools import pairwise

WINDOW = 240
"""Commands whose ages decide the delay; four seconds at 60 a second."""
LAN_JITTER_NS = 8_000_000
"""Jitter (95 against 5 of 100) that needs no buffer: half a control step."""
SLEW = 0.05
"""The delay changes by at most this share of the time that passes, so played motion is hardly faster or slower."""


class PlayoutBuffer:
    """Plays commands at an even pace; times in nanoseconds of the own monotonic clock.

    Args:
        max_delay_ms: most that the buffer adds to the age of a command; 0 plays the newest command at once.
        gap_ms: silence after which what came before is forgotten.
    """

    def __init__(self, max_delay_ms: float, gap_ms: float) -> None:
        self._max_ns, self._gap_ns = round(max_delay_ms * 1e6), round(gap_ms * 1e6)
        self._commands: deque[tuple[int, tuple[float, ...]]] = deque(maxlen=WINDOW)
        self._ages_ns: deque[int] = deque(maxlen=WINDOW)
        self._delay_ns: float | None = None
        self._played_ns = 0
        self.came_ns: int | None = None
        """When the newest command came; None if there is none to play."""

    @property
    def delay_ms(self) -> float:
        """How old commands are when they are played; 0 where the newest one counts at once."""
        return (self._delay_ns or 0) / 1e6

    def clear(self) -> None:
        """Forget the commands (the ages stay): nothing is played until a new one comes."""
        self._commands.clear()
        self.came_ns = None

    def put(self, came_ns: int, age_ns: int, angles_deg: tuple[float, ...]) -> None:
        """Take a command.

        Args:
            came_ns: when it came.
            age_ns: how long ago it was sent.
            angles_deg: (6,) degrees.
        """
        sent_ns = came_ns - age_ns
        is_jump = bool(self._commands) and sent_ns <= self._commands[-1][0]
        if is_jump or (self.came_ns is not None and came_ns - self.came_ns > self._gap_ns):
            self.clear()
        self._commands.append((sent_ns, angles_deg))
        self._ages_ns.append(age_ns)
        self.came_ns = came_ns

    def play(self, now_ns: int) -> tuple[float, ...] | None:
        """Return the (6,) degrees of this instant; None if there is no command.

        Cost: a sort of 240 ages, about 10 microseconds.
        """
        if not self._commands:
            return None
        self._adapt(now_ns)
        playing_ns = now_ns - (self._delay_ns or 0)
        while len(self._commands) > 2 and self._commands[1][0] <= playing_ns:
            self._commands.popleft()
        for (start_ns, start), (end_ns, end) in pairwise(self._commands):
            if playing_ns < end_ns:
                share = max(0.0, (playing_ns - start_ns) / (end_ns - start_ns))
                return tuple(a + (b - a) * share for a, b in zip(start, end, strict=True))
        return self._commands[-1][1]

    def _adapt(self, now_ns: int) -> None:
        """Move the delay towards the one that the ages ask for."""
        ages = sorted(self._ages_ns)
        least, most = ages[int(0.05 * (len(ages) - 1))], ages[int(0.95 * (len(ages) - 1))]
        wanted = 0.0 if most - least <= LAN_JITTER_NS else float(min(most, least + self._max_ns))
        if self._max_ns == 0:
            wanted = 0.0
        elapsed_ns, self._played_ns = max(0, now_ns - self._played_ns), now_ns
        if self._delay_ns is None:
            self._delay_ns = wanted
        step = SLEW * elapsed_ns
        self._delay_ns += max(-step, min(step, wanted - self._delay_ns))
