"""What options of problems that advance in time share: how many steps, and the accepted error. Without torch."""

import math
from typing import Protocol, Self, TypeVar

TIME_TOLERANCE = 0.01
"""Largest relative error by the time step that is accepted unless a configuration says otherwise."""


class Timed(Protocol):
    """Options of a problem that advances in time."""

    final_time: float
    steps: int | None
    snapshots: int

    def resolved(self) -> Self:
        """Return the options with a number for each that was left open."""

    def model_copy(self, *, update: dict[str, object] | None = None) -> Self:
        """Return a copy with other values."""


TimedT = TypeVar("TimedT", bound=Timed)


def steps_for(config: TimedT, rate: float) -> int:
    """Return time steps up to the end at so many a unit of time, a multiple of the stored times."""
    wanted = math.ceil(rate * max(1.0, config.final_time))
    return math.ceil(wanted / config.snapshots) * config.snapshots


def require_times(config: TimedT) -> TimedT:
    """Refuse stored times that no step hits.

    Raises:
        ValueError: pydantic makes the message of it.
    """
    if config.steps is not None and config.steps % config.snapshots:
        raise ValueError(
            f"snapshots={config.snapshots} does not divide steps={config.steps}; expected a divisor. Change steps."
        )
    return config
