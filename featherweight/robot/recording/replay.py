"""Replays a recorded episode through the same safety pipeline: the first frame through SYNC, then at its own rate."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featherweight.errors import ConfigError
from featherweight.robot.kit import JOINT_KEYS
from featherweight.robot.leaders.paced import PacedLeader
from featherweight.robot.recording.demo_dataset import DemoDataset
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.safety.controller import Controller
from featherweight.robot.safety.mode import Mode
from featherweight.robot.teleoperation import SteeredArm, run_loop

SETTLE_S = 0.5
"""Time that the arm is given after the last frame."""
LONGEST_SYNC_S = 30.0


@dataclass
class ReplayResult:
    """How a replay ended."""

    duration_s: float
    frames: int
    end_error_deg: float
    """Largest difference of a joint from where the last frame sends it."""
    largest_error_deg: float
    """Largest difference of a joint from the recorded state of the same frame."""
    mode: str
    counters: dict[str, int]


def replay(
    data: DemoDataset,
    number: int,
    follower: SteeredArm,
    speed: float = 1.0,
    safety: SafetyConfig | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ReplayResult:
    """Let a follower repeat the actions of an episode.

    Args:
        data: the data set.
        number: of the episode.
        follower: connected.
        speed: 1 is the recording's own; slower is safer.
        safety: limits.
        clock: time in seconds.
        sleep: waits.
    Raises:
        ConfigError: if the episode is not there, or its actions are not those of this arm.
    """
    if not 0.1 <= speed <= 2:
        raise ConfigError(f"replay: speed={speed} is out of range; expected 0.1 to 2. Use 1.")
    names = data.features.get("action", {}).get("names")
    if list(names or []) != list(JOINT_KEYS):
        raise ConfigError(
            f"replay: action names={names} of {data.root} are not those of this arm; expected {list(JOINT_KEYS)}. "
            "Record a set with this arm."
        )
    episode = data.episode(number)
    states = episode["observation.state"]
    rate_hz = data.fps * speed
    leader = PacedLeader([tuple(map(float, action)) for action in episode["action"]], rate_hz, clock)
    errors = [0.0]

    def on_step(controller: Controller) -> bool:
        is_active = controller.mode is Mode.ACTIVE
        if is_active:
            frame = min(len(states) - 1, round(leader.played_s * rate_hz))
            errors.append(float(np.abs(np.array(follower.reported_deg()) - states[frame]).max()))
        leader.play(is_active)
        return leader.played_s < len(states) / rate_hz + SETTLE_S

    longest_s = len(states) / rate_hz + SETTLE_S + LONGEST_SYNC_S
    with leader:
        result = run_loop(leader, follower, 60.0, safety, longest_s, on_step, clock, sleep)
    end = np.abs(np.array(follower.reported_deg()) - episode["action"][-1])
    return ReplayResult(
        result.duration_s, len(states), float(end.max()), max(errors), result.mode.name, dict(result.counters)
    )
