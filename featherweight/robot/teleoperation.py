"""One leader, one follower, one computer: the control loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from featherweight.errors import ConfigError, FeatherweightError
from featherweight.robot.calibration_file import KitCalibration
from featherweight.robot.contract import Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.driver.umirobot import UMIRobot
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.safety.controller import Controller, Follower
from featherweight.robot.safety.mode import Mode


@dataclass
class TeleoperationResult:
    """What happened in a session."""

    duration_s: float
    steps: int
    late_steps: int
    """Steps that began more than half a period late."""
    mode: Mode
    """At the end."""
    reason: str
    counters: dict[str, int] = field(default_factory=dict)
    """Holds, stops, refused commands, by reason."""


def teleoperate(
    leader: Teleoperator,
    follower: UMIRobot,
    fps: float = 60,
    safety: SafetyConfig | None = None,
    duration_s: float | None = None,
    on_step: Callable[[Controller], bool | None] | None = None,
) -> TeleoperationResult:
    """Let a leader drive a follower until the time is over, `on_step` returns False, or Ctrl-C.

    The arm catches up slowly first (SYNC), is held on every doubt (silent or faulty leader, lost link, restarted kit),
    and is held at the end, whatever ends the loop.

    Args:
        leader: connected.
        follower: connected.
        fps: control steps a second.
        safety: limits.
        duration_s: None goes on until Ctrl-C.
        on_step: called after every step with the controller.
    Raises:
        ConfigError: if fps is out of range.
        DeviceError: if one of the two is not connected.
    """
    for device in (leader, follower):
        device._require_connection("teleoperate")
    return run_loop(leader, follower, fps, safety, duration_s, on_step)


class SteeredArm(Follower, Protocol):
    """What the loop needs of a follower; `UMIRobot` and `VirtualRobot` have it."""

    calibration: KitCalibration


def run_loop(
    leader: Teleoperator,
    follower: SteeredArm,
    fps: float,
    safety: SafetyConfig | None,
    duration_s: float | None,
    on_step: Callable[[Controller], bool | None] | None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> TeleoperationResult:
    """Run the loop of `teleoperate` by any clock; see there.

    Args:
        leader: connected.
        follower: connected.
        fps: control steps a second.
        safety: limits.
        duration_s: None goes on until Ctrl-C.
        on_step: called after every step with the controller.
        clock: time in seconds.
        sleep: waits; in virtual time it lets the kit run.
    """
    if not 5 <= fps <= 200:
        raise ConfigError(f"teleoperate: fps={fps} is out of range; expected 5 to 200. Use 60.")
    controller = Controller(follower, safety, follower.calibration.range_deg)
    start_s = due_s = clock()
    steps = late = 0
    try:
        while duration_s is None or clock() - start_s < duration_s:
            now_s = clock()
            late += now_s - due_s > 0.5 / fps
            _ask_leader(leader, follower, controller, clock)
            controller.tick(clock())
            steps += 1
            if on_step is not None and on_step(controller) is False:
                break
            # After a pause the loop does not hurry to make up for lost steps.
            due_s = max(due_s + 1 / fps, now_s)
            sleep(max(0.0, due_s - clock()))
    except KeyboardInterrupt:
        pass
    finally:
        follower.hold()
    modes = controller.modes
    return TeleoperationResult(clock() - start_s, steps, late, modes.mode, modes.reason, dict(controller.counters))


def _ask_leader(leader: Teleoperator, follower: SteeredArm, controller: Controller, clock: Callable[[], float]) -> None:
    """Take one action of the leader; one that fails gives none, so that the arm is held after the time-out."""
    try:
        if follower.is_streaming:
            leader.send_feedback(keyed_angles(follower.reported_deg()))
        for event in leader.poll_events():
            if event == "stop":
                controller.stop("stopped by the operator")
            elif event == "reset":
                controller.request_reset()
            elif event == "pause":
                controller.forget_command("the operator let go")
        action = leader.get_action()
        if action is not None:
            controller.command(ordered_angles("teleoperate", action), clock())
    except (FeatherweightError, OSError) as error:
        controller.counters["faulty leader"] += 1
        if controller.modes.is_moving:
            controller.hold(f"the leader failed: {error}")
