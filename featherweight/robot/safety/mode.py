"""The modes of a follower.

    IDLE ──command──> SYNC ──near the leader──> ACTIVE
      ^                ^ |                        |
      |                | └────── any doubt ───────┤
    reset()            └── command ── HOLD <──────┘          stop() leads to ESTOP from everywhere, reset() out of it

HOLD is left through SYNC alone, which is slow; ESTOP through an explicit reset alone.
"""

import enum
from dataclasses import dataclass


class Mode(enum.IntEnum):
    """What a follower does; the numbers go over the network."""

    IDLE = 0
    SYNC = 1
    ACTIVE = 2
    HOLD = 3
    ESTOP = 4


@dataclass
class ModeMachine:
    """The mode and why; it knows no clock and no robot."""

    mode: Mode = Mode.IDLE
    reason: str = "waits for a leader"

    @property
    def is_moving(self) -> bool:
        """Whether commands move the arm."""
        return self.mode in (Mode.SYNC, Mode.ACTIVE)

    def start(self) -> bool:
        """A good command came: IDLE and HOLD become SYNC; return whether they did."""
        if self.mode in (Mode.IDLE, Mode.HOLD):
            self.mode, self.reason = Mode.SYNC, "catches up with the leader"
            return True
        return False

    def caught_up(self) -> None:
        """Every joint is near the leader: SYNC becomes ACTIVE."""
        if self.mode is Mode.SYNC:
            self.mode, self.reason = Mode.ACTIVE, ""

    def hold(self, reason: str) -> bool:
        """Something is in doubt; return whether that ended motion."""
        if self.is_moving:
            self.mode, self.reason = Mode.HOLD, reason
            return True
        return False

    def stop(self, reason: str) -> None:
        """Emergency stop."""
        self.mode, self.reason = Mode.ESTOP, reason

    def reset(self) -> None:
        """Leave the emergency stop; the next command starts SYNC."""
        if self.mode is Mode.ESTOP:
            self.mode, self.reason = Mode.IDLE, "waits for a leader"
