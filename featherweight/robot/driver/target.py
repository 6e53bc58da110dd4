"""From a wish in degrees to six integers that cannot hurt: rounding, speed, bounded look-ahead, freezing.

The firmware has no watchdog and walks to the last target that it got. So the target never stands farther than the
look-ahead from the angle that the kit reported last: whatever dies on the host, the arm stops within that many degrees.
The bound is applied once for every status line, in the thread that owns the port.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from featherweight.robot.kit import LIMIT_DEG, SERVOS

ROUNDING_HYSTERESIS_DEG = 0.6
"""A target changes its integer only when it is farther than this from it, so a constant wish never chatters."""
MAX_STEP_S = 0.05
"""Time for which a speed limit advances the target at most on one line; after a gap the arm does not hurry."""


def round_with_hysteresis(value: float, previous: int | None, hysteresis: float = ROUNDING_HYSTERESIS_DEG) -> int:
    """Round to the nearest integer, but stay at `previous` while it is within the hysteresis.

    Example:
        >>> [round_with_hysteresis(value, 10) for value in (10.55, 9.45, 10.7)]
        [10, 10, 11]
    """
    if previous is not None and abs(value - previous) <= hysteresis:
        return previous
    return math.floor(value + 0.5)


@dataclass
class Target:
    """The target of the six servos, advanced once per status line.

    Args:
        lookahead_deg: largest distance between a sent target and the angle reported last.
        hysteresis_deg: of the rounding.
    """

    lookahead_deg: int = 3
    hysteresis_deg: float = ROUNDING_HYSTERESIS_DEG
    sent_deg: tuple[int, ...] | None = None
    _ramp_deg: list[float] = field(default_factory=list)

    def latch(self, reported_deg: Sequence[int]) -> tuple[int, ...]:
        """Freeze: take the reported angles once as the target.

        To follow them on every line would be a feedback loop with a delay of three lines, in which an arm sways for
        ever.
        """
        self.sent_deg = tuple(reported_deg)
        self._ramp_deg = [float(angle) for angle in reported_deg]
        return self.sent_deg

    def advance(
        self, reported_deg: Sequence[int], goal_deg: Sequence[float], max_speed_deg_s: float | None, elapsed_s: float
    ) -> tuple[int, ...]:
        """Move the target towards a goal.

        Args:
            reported_deg: (6,) angles of the newest status line.
            goal_deg: (6,) finite wishes; clamped to the limits here.
            max_speed_deg_s: largest speed of the target; None leaves it to the firmware.
            elapsed_s: since the line before.
        Returns:
            (6,) integers, each within the limits and within the look-ahead of the reported angle.
        """
        if self.sent_deg is None:
            self.latch(reported_deg)
        assert self.sent_deg is not None
        step = math.inf if max_speed_deg_s is None else max_speed_deg_s * min(max(elapsed_s, 0.0), MAX_STEP_S)
        goals = [max(-LIMIT_DEG, min(LIMIT_DEG, goal)) for goal in goal_deg]
        farthest = max(abs(goal - start) for goal, start in zip(goals, self._ramp_deg, strict=True))
        # All joints share their time, so the arm goes straight in joint space, where the guard has looked.
        share = step / farthest if farthest > step else 1.0
        target = []
        for i in range(SERVOS):
            low, high = reported_deg[i] - self.lookahead_deg, reported_deg[i] + self.lookahead_deg
            start = self._ramp_deg[i]
            moved = start + (goals[i] - start) * share
            # The ramp stays near the arm, too: an arm that lags is not chased by a target that ran ahead.
            self._ramp_deg[i] = max(low, min(high, moved))
            whole = round_with_hysteresis(self._ramp_deg[i], self.sent_deg[i], self.hysteresis_deg)
            target.append(max(-LIMIT_DEG, min(LIMIT_DEG, max(low, min(high, whole)))))
        self.sent_deg = tuple(target)
        return self.sent_deg
