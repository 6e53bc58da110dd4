"""The leader whose hand is a browser: it leads while the page says that a control is held, and not a moment longer.

The page repeats its wish some 30 times a second. A wish counts for 200 ms; then, or when the page lets go, the leader
asks for a pause, so that the arm is frozen at once and not when the follower misses commands.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featherweight.errors import ConfigError
from featherweight.robot.contract import Action, Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.kit import SERVOS
from featherweight.robot.leaders.mapping import RateIntegrator

HEARTBEAT_S = 0.2
"""Silence of the page after which it leads no more."""
MODES = ("joint", "twist")


@dataclass(frozen=True)
class Wish:
    """What the page wants now.

    Attributes:
        values: (6,) degrees, or velocities as `RateIntegrator` takes them.
        mode: "angles", or the mode of the velocities, "joint" or "twist".
    """

    values: tuple[float, ...]
    mode: str = "angles"

    @classmethod
    def parse(cls, mode: Any, values: Any) -> "Wish":
        """Read a wish of a message.

        Raises:
            ConfigError: if it is none.
        """
        is_list = isinstance(values, list) and len(values) == SERVOS
        if mode not in ("angles", *MODES) or not is_list or not all(_is_finite(value) for value in values):
            raise ConfigError(
                f"web: wish={mode!r} {str(values)[:80]} is none; expected six finite numbers. Load the page again."
            )
        return cls(tuple(map(float, values)), mode)


class WebLeader(Teleoperator):
    """Leads what a page wishes.

    Args:
        id: name.
        clock: time in seconds.
    """

    name = "web"

    def __init__(self, id: str = "web", clock: Callable[[], float] = time.monotonic) -> None:
        self.id = id
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._is_connected = False
        self._wish: Wish | None = None
        self._wish_s = -math.inf
        self._integrator: RateIntegrator | None = None
        self._feedback_deg: tuple[float, ...] | None = None
        self._events: list[str] = []

    @property
    def is_connected(self) -> bool:
        """Whether a page may lead."""
        return self._is_connected

    @property
    def is_leading(self) -> bool:
        """Whether the page holds a control."""
        return self._wish is not None

    @property
    def feedback_features(self) -> dict[str, Any]:
        """The follower's angles, at which velocities start."""
        return self.action_features

    def connect(self, calibrate: bool = True) -> None:
        """Take wishes from now on."""
        self._is_connected = True

    def disconnect(self) -> None:
        """The page is gone."""
        self.release()
        self._is_connected = False

    def take(self, wish: Wish | None) -> None:
        """Take what the page wishes; None says that no control is held."""
        if wish is None:
            self.release()
        else:
            if self._wish is None or self._wish.mode != wish.mode:
                self._integrator = None
            self._wish, self._wish_s = wish, self._clock()

    def release(self) -> None:
        """No control is held: ask for a pause if one was."""
        if self._wish is not None:
            self._wish = self._integrator = None
            self._events.append("pause")

    def poll_events(self) -> tuple[str, ...]:
        """Return "pause" if the page let go, or fell silent, since the last call."""
        if self._wish is not None and self._clock() - self._wish_s > HEARTBEAT_S:
            self.counters["silent"] += 1
            self.release()
        events, self._events = tuple(self._events), []
        return events

    def send_feedback(self, feedback: Mapping[str, float]) -> None:
        """Remember where the follower is; velocities start there."""
        self._feedback_deg = ordered_angles("WebLeader.send_feedback", feedback)

    def get_action(self) -> Action | None:
        """Return the angles of now; None unless a control is held."""
        self._require_connection("get_action")
        wish = self._wish
        if wish is None:
            return None
        if wish.mode == "angles":
            return keyed_angles(wish.values)
        if self._integrator is None:
            if self._feedback_deg is None:
                return None
            self._integrator = RateIntegrator(wish.mode)
            self._integrator.start_at(self._feedback_deg)
        self._integrator.renew(wish.values, self._wish_s)
        angles_deg = self._integrator.advance(self._clock())
        return None if angles_deg is None else keyed_angles(angles_deg)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
