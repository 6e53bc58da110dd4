"""Decides once per control step what a follower may do.

One thread calls `command` and `tick`. Other threads may call `stop` and `request_reset`, which only set a flag. The
driver's own thread freezes the arm when this one dies: every goal carries the time of its command and expires.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from featherweight.robot.kit import ARM_JOINTS, LIMIT_DEG, SERVOS
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.safety.guard import way_is_free
from featherweight.robot.safety.mode import Mode, ModeMachine

EXPIRY_MARGIN_S = 0.03
"""The driver lets a goal expire this much later than the controller holds, so that the controller comes first if it
lives."""


class Follower(Protocol):
    """What the controller needs of a robot; `UMIRobot` has it."""

    @property
    def is_streaming(self) -> bool:
        """Whether the robot reports."""
        ...

    @property
    def epoch(self) -> int:
        """Rises with every loss and restart."""
        ...

    def reported_deg(self) -> tuple[float, ...]:
        """(6,) newest reported angles of the joints."""
        ...

    def silence_s(self, now_s: float) -> float:
        """Time since the newest report."""
        ...

    def move(
        self,
        joints_deg: tuple[float, ...],
        max_speed_deg_s: float | None,
        epoch: int,
        timeout_s: float | None,
        now_s: float,
    ) -> None:
        """Set the goal."""
        ...

    def hold(self) -> None:
        """Freeze."""
        ...

    def stop(self) -> None:
        """Emergency stop."""
        ...

    def release_stop(self) -> None:
        """End an emergency stop, frozen."""
        ...


class Controller:
    """Limits, guard and modes of one follower.

    Args:
        follower: the robot.
        safety: its limits.
        range_deg: (6, 2) range of each joint; None for -90 to 90.
    """

    def __init__(
        self,
        follower: Follower,
        safety: SafetyConfig | None = None,
        range_deg: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        self.safety = safety or SafetyConfig()
        self.modes = ModeMachine()
        self.counters: Counter[str] = Counter()
        self.limits_hit = False
        self._follower = follower
        self._range_deg = tuple(range_deg or [(-float(LIMIT_DEG), float(LIMIT_DEG))] * SERVOS)
        self._search: Callable[[Sequence[float]], tuple[int, ...]] | None = None
        if self.safety.integer == "search":
            from featherweight.robot.kinematics.integer import IntegerSearch

            self._search = IntegerSearch()
        self._goal_deg: tuple[float, ...] | None = None
        self._wish_deg: tuple[float, ...] | None = None
        self._command_s = -math.inf
        self._epoch = -1
        # Stops are numbered, so that a reset ends the stop that its sender saw and never one that came in between.
        self._stop_numbers = itertools.count(1)
        self._newest_stop = self._obeyed_stop = self._reset_of = 0
        self._stop_reason = ""

    @property
    def mode(self) -> Mode:
        """The mode of now."""
        return self.modes.mode

    @property
    def goal_deg(self) -> tuple[float, ...] | None:
        """(6,) degrees that are in force after the limits; None while the arm is held."""
        return self._goal_deg

    # ---- from any thread --------------------------------------------------------------------------------------------

    def stop(self, reason: str = "emergency stop") -> None:
        """Emergency stop, at once; `request_reset` leads out of it."""
        self._stop_reason = reason
        self._newest_stop = next(self._stop_numbers)
        self._follower.stop()

    def request_reset(self) -> None:
        """Ask to leave the emergency stop; the next step does it."""
        self._reset_of = self._newest_stop

    # ---- from the thread of the control loop ------------------------------------------------------------------------

    def command(self, angles_deg: Sequence[float], now_s: float) -> bool:
        """Take a command; return whether it counts. One that is not finite never does, and does not keep the arm going.

        Args:
            angles_deg: (6,) degrees.
            now_s: on the monotonic clock.
        """
        if len(angles_deg) != SERVOS or not all(map(math.isfinite, angles_deg)):
            self.counters["not finite"] += 1
            return False
        self._wish_deg = tuple(map(float, angles_deg))
        self._command_s = now_s
        return True

    def hold(self, reason: str) -> None:
        """Freeze the arm; the next command leads back through SYNC."""
        if self.modes.hold(reason):
            self._follower.hold()
            self.counters["holds"] += 1
            self._goal_deg = None

    def forget_command(self, reason: str = "the leader left") -> None:
        """The leader is gone or let go on purpose: hold, and wait for a new command."""
        self.hold(reason)
        self._command_s = -math.inf

    def tick(self, now_s: float) -> Mode:
        """Run one control step."""
        follower = self._follower
        self._obey_stop()
        try:
            is_streaming, epoch = follower.is_streaming, follower.epoch
            reported_deg = follower.reported_deg() if is_streaming else None
            silence_s = follower.silence_s(now_s) if is_streaming else math.inf
        except Exception as error:  # a robot that cannot say where it is must not be moved
            self.hold(str(error))
            return self.mode
        age_s = now_s - self._command_s
        has_started = False
        is_fresh = 0 <= age_s <= self.safety.command_timeout_s
        if reported_deg is None:
            self.hold("the link to the robot is lost")
        elif silence_s > self.safety.command_timeout_s:
            # The driver waits longer before it calls a link lost; an arm of which nothing is known is held before.
            self.hold("the robot is silent")
        elif self.modes.is_moving and epoch != self._epoch:
            self.hold("the robot started again")
        elif not is_fresh:
            self.hold(f"no command for {self.safety.command_timeout_s * 1000:g} ms")
        elif self.modes.start():
            has_started, self._epoch, self._goal_deg = True, epoch, None
        if not self.modes.is_moving or reported_deg is None:
            return self.mode
        assert self._wish_deg is not None
        self._choose_goal(self._wish_deg, reported_deg)
        if self.mode is Mode.SYNC and not has_started and self._is_near(reported_deg):
            self.modes.caught_up()
        safety = self.safety
        speed_deg_s = safety.max_speed_deg_s if self.mode is Mode.ACTIVE else safety.sync_speed_deg_s
        if self._goal_deg is not None:
            timeout_s = safety.command_timeout_s + EXPIRY_MARGIN_S
            follower.move(self._goal_deg, speed_deg_s, self._epoch, timeout_s, self._command_s)
        return self.mode

    def _obey_stop(self) -> None:
        newest = self._newest_stop
        if newest != self._obeyed_stop:
            self._obeyed_stop = newest
            self.modes.stop(self._stop_reason)
            self._goal_deg = None
            self.counters["stops"] += 1
        if self.mode is Mode.ESTOP and self._reset_of == newest:
            self._command_s = -math.inf
            self.modes.reset()
            self._follower.release_stop()
            if self._newest_stop != newest:
                self._follower.stop()

    def _choose_goal(self, wish_deg: tuple[float, ...], reported_deg: tuple[float, ...]) -> None:
        """Clamp to ranges and relative limit, then ask the guard; a refused wish leaves the goal as it was."""
        most = self.safety.max_relative_target
        goal = []
        for wish, now, (low, high) in zip(wish_deg, reported_deg, self._range_deg, strict=True):
            limited = max(low, min(high, wish))
            goal.append(limited if most is None else max(now - most, min(now + most, limited)))
        self.limits_hit = tuple(goal) != wish_deg
        if self._search is not None:
            goal[:ARM_JOINTS] = map(float, self._search(goal[:ARM_JOINTS]))
        if self._goal_deg == tuple(goal):
            return
        if self.safety.guard and not way_is_free(reported_deg, goal):
            self.counters["guard"] += 1
            self.counters["guard trips"] += not self.modes.reason.startswith("the guard")
            self.limits_hit = True
            self.modes.reason = "the guard keeps the arm from table or itself"
            return
        if self.modes.reason.startswith("the guard"):
            self.modes.reason = ""
        self._goal_deg = tuple(goal)

    def _is_near(self, reported_deg: tuple[float, ...]) -> bool:
        if self._goal_deg is None:
            return False
        return (
            max(abs(g - q) for g, q in zip(self._goal_deg, reported_deg, strict=True)) <= self.safety.sync_tolerance_deg
        )
