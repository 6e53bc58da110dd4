"""From a leader's six signals to six joint angles: joint by joint, as a pose of the tool, or as a velocity."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from featherweight.config import Config
from featherweight.robot.control.task import TaskController
from featherweight.robot.kinematics.dh import ARM_JOINTS, TOOL_M, forward
from featherweight.robot.kinematics.inverse import table_top
from featherweight.robot.kit import LIMIT_DEG, SERVOS


class JointMap(Config):
    """Joint i = gain[i] * signal[source[i]] + offset_deg[i]."""

    source: list[int] = Field(default=list(range(SERVOS)), min_length=SERVOS, max_length=SERVOS)
    """(6,) which signal moves each joint, 0 to 5."""
    gain: list[float] = Field(default=[1.0] * SERVOS, min_length=SERVOS, max_length=SERVOS)
    """(6,) factor of each joint; negative turns the other way."""
    offset_deg: list[float] = Field(default=[0.0] * SERVOS, min_length=SERVOS, max_length=SERVOS)
    """(6,) added to each joint."""

    def apply(self, signals_deg: Sequence[float]) -> tuple[float, ...]:
        """Return (6,) joint angles for (6,) signals."""
        return tuple(self.gain[i] * signals_deg[self.source[i] % SERVOS] + self.offset_deg[i] for i in range(SERVOS))


class PoseMap(Config):
    """Signals 1-3 move the tool around a centre, 4 sets how steeply it points down, 6 moves the gripper."""

    center_m: tuple[float, float, float] = (0.17, 0.0, 0.06)
    """Tool point in the world when all signals are zero."""
    reach_m: tuple[float, float, float] = (0.07, 0.12, 0.05)
    """How far signals of 90 degrees move the tool along x, y, z."""

    def apply(self, signals_deg: Sequence[float]) -> tuple[float, ...]:
        """Return (6,) joint angles for (6,) signals; a point out of reach is drawn towards the centre."""
        offset = np.array([signals_deg[i] / LIMIT_DEG * self.reach_m[i] for i in range(3)])
        center = np.asarray(self.center_m)
        for share in np.linspace(1.0, 0.0, 21):
            joints = table_top(center + share * offset, TOOL_M)
            if joints is not None:
                return (*np.degrees(joints), float(signals_deg[5]))
        return (*np.degrees(table_top((0.17, 0.0, 0.06), TOOL_M)), float(signals_deg[5]))  # type: ignore[arg-type]


class RateIntegrator:
    """Integrates velocities to angles; they decay to zero within 100 ms when nothing renews them.

    Args:
        mode: "joint" (six rates in degrees a second) or "twist" (three of the tool in mm a second, two joints,
            gripper).
    """

    DECAY_S = 0.1

    def __init__(self, mode: str = "joint") -> None:
        self._mode = mode
        self._controller = TaskController()
        self.angles_deg: tuple[float, ...] | None = None
        self._rates = (0.0,) * SERVOS
        self._renewed_s = -math.inf
        self._time_s: float | None = None

    def start_at(self, angles_deg: Sequence[float]) -> None:
        """Begin at these angles."""
        self.angles_deg = tuple(angles_deg)

    def renew(self, rates: Sequence[float], now_s: float) -> None:
        """Set the velocities of now."""
        self._rates, self._renewed_s = tuple(rates), now_s

    def advance(self, now_s: float) -> tuple[float, ...] | None:
        """Return (6,) angles of now; None before `start_at`."""
        elapsed_s = min(0.1, max(0.0, now_s - self._time_s)) if self._time_s is not None else 0.0
        self._time_s = now_s
        if self.angles_deg is None or not elapsed_s:
            return self.angles_deg
        share = max(0.0, min(1.0, 1 - (now_s - self._renewed_s) / self.DECAY_S))
        if share == 0.0 or not any(self._rates):
            return self.angles_deg
        steps = [rate * share * elapsed_s for rate in self._rates]
        if self._mode == "twist":
            steps[:ARM_JOINTS] = self._twist_steps(steps)
        self.angles_deg = tuple(
            max(-LIMIT_DEG, min(LIMIT_DEG, angle + step)) for angle, step in zip(self.angles_deg, steps, strict=True)
        )
        return self.angles_deg

    def _twist_steps(self, steps: list[float]) -> list[float]:
        """Turn a motion of the tool in mm, along the arm's heading, and two joints' degrees into five joints'
        degrees.
        """
        assert self.angles_deg is not None
        q = np.radians(self.angles_deg[:ARM_JOINTS])
        motion_m = np.array(steps[:3]) / 1000
        reached = self._controller.twist(q, motion_m / self._controller.period_s)
        here, there = forward(q)[0], forward(reached)[0]
        if not np.isfinite(there).all() or np.allclose(here, there, atol=1e-12):
            return [0.0, 0.0, 0.0, steps[3], steps[4]]
        change = np.degrees(reached - q)
        return [float(change[0]), float(change[1]), float(change[2]), steps[3], float(change[4]) + steps[4]]
