"""What the commands of `fw robot` share: leaders and followers by name, the session, its window and its film."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.cli.screen import print_json
from featherweight.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from featherweight.robot.contract import Teleoperator
    from featherweight.robot.driver.umirobot import UMIRobot
    from featherweight.robot.safety.controller import Controller

LEADERS = ("keyboard", "pots", "gamepad", "expert", "sine", "policy")
FOLLOWERS = ("umirobot", "sim")
SIMULATED_CAMERAS = ("front", "top", "wrist")


@dataclass(frozen=True)
class CameraWishes:
    """The options about cameras, as they were written."""

    words: Sequence[str] | None = None
    size: str | None = None
    rate: float | None = None
    format: str | None = None


def make_leader(name: str, port: str, robot: "UMIRobot | None", policy: Path | None = None) -> "Teleoperator":
    """Return the leader of a name; `policy` is the folder of that leader alone."""
    import math

    from featherweight import robot as fwr

    if name == "keyboard":
        from featherweight.robot.leaders.keyboard import HELP

        print(HELP)
        return fwr.KeyboardLeader()
    if name == "pots":
        return fwr.PotLeader(fwr.PotLeaderConfig(port=port))
    if name == "gamepad":
        return fwr.GamepadLeader()
    if name == "sine":
        return fwr.ScriptedLeader(lambda t: tuple(20 * math.sin(t + i) for i in range(6)))
    if name == "expert":
        from featherweight.robot.sim.expert import pick_all
        from featherweight.robot.sim.robot import SimRobot

        if isinstance(robot, SimRobot):
            return fwr.ScriptedLeader(pick_all(robot.world))
        raise ConfigError(
            "fw robot: leader=expert needs the simulator; expected --follower sim. Choose another leader."
        )
    if name == "policy":
        if policy is None or robot is None:
            raise ConfigError(
                "fw robot: leader=policy has no policy; expected the folder of a run. Use fw robot teleop --policy RUN."
            )
        from featherweight.robot.learning.policy import load_policy
        from featherweight.robot.learning.policy_leader import PolicyLeader, eyes_of_robot

        trained, world = load_policy(policy), getattr(robot, "world", None)
        return PolicyLeader(trained, eyes_of_robot(trained, robot, None if world is None else world.scene))
    raise ConfigError(unknown_choice("fw robot", "leader", name, LEADERS))


def make_follower(name: str, port: str, cameras: CameraWishes | None = None) -> "UMIRobot":
    """Return the follower of a name, with its cameras.

    Raises:
        ConfigError: if the follower or a size is unknown, or two cameras have one name.
    """
    from featherweight import robot as fwr
    from featherweight.cli.robot_options import read_size
    from featherweight.robot.camera.source import CameraConfig, parse_cameras

    if name not in FOLLOWERS:
        raise ConfigError(unknown_choice("fw robot", "follower", name, FOLLOWERS))
    wishes = cameras or CameraWishes()
    words, size = list(wishes.words or []), read_size("fw robot", wishes.size)
    for word in words if name != "sim" else []:
        if word in SIMULATED_CAMERAS:
            raise ConfigError(
                f"fw robot: camera={word} is the simulator's; expected one beside the kit, such as {word}=/dev/video0. "
                "Look at fw robot cameras."
            )
    simulated, real = parse_cameras(words, SIMULATED_CAMERAS if name == "sim" else ())
    width_px, height_px = size or (None, None)
    live = {
        key: CameraConfig(
            source=source, width_px=width_px, height_px=height_px, fps=wishes.rate, input_format=wishes.format
        )
        for key, source in real.items()
    }
    if name == "umirobot":
        return fwr.UMIRobot(fwr.UMIRobotConfig(port=port, cameras=live))
    drawn = {} if size is None else {"width_px": size[0], "height_px": size[1]}
    robot = fwr.UMIRobotConfig(port="sim", id="sim", cameras=live)
    return fwr.SimRobot(fwr.SimRobotConfig.parse({"cameras": simulated, "robot": robot, **drawn}, where="fw robot"))


def make_inputs(name: str) -> Any:
    """Return the emulated kit's inputs of a name."""
    from featherweight.robot.emulator import inputs

    kind, _, path = name.partition(":")
    makers: dict[str, Any] = {
        "constant": inputs.ConstantInputs,
        "sine": inputs.SineInputs,
        "floating": inputs.FloatingInputs,
        "csv": lambda: inputs.CsvInputs(path),
        "file": lambda: inputs.FileInputs(path),
    }
    if kind not in makers:
        raise ConfigError(unknown_choice("fw robot emulate", "inputs", name, makers))
    return makers[kind]()


def run_teleoperation(
    leader: "Teleoperator",
    robot: "UMIRobot",
    fps: float,
    duration_s: float | None,
    as_json: bool,
    window: Any = None,
    recorder: "Recorder | None" = None,
) -> None:
    """Teleoperate with the angles in the terminal, and print what happened."""
    from rich.console import Console

    from featherweight.robot.teleoperation import teleoperate

    screen, steps = Console(stderr=True), 0
    world = getattr(robot, "world", None)

    def show(controller: "Controller") -> bool:
        nonlocal steps
        steps += 1
        if window is not None and world is not None:
            # The physics runs in the driver's thread; the window copies its state.
            with world.lock:
                window.sync()
        if recorder is not None:
            recorder.look()
        if screen.is_terminal and steps % 12 == 0 and robot.is_streaming:
            angles = " ".join(f"{angle:4.0f}" for angle in robot.reported_deg())
            screen.print(f"{controller.mode.name:6} {angles}  {controller.modes.reason:60.60}", end="\r")
        is_closed = window is not None and not window.is_running()
        return not (is_closed or getattr(leader, "is_left", False) or getattr(leader, "is_finished", False))

    with leader:
        if not leader.is_calibrated:
            screen.print(f"warning: {leader.id} is not calibrated; run fw robot calibrate. Its whole range is used.")
        result = teleoperate(leader, robot, fps, duration_s=duration_s, on_step=show)
    values = vars(result) | {"mode": result.mode.name}
    if as_json:
        print_json(values)
    else:
        print(
            f"{result.duration_s:.1f} s, {result.steps} steps, ended {result.mode.name} {result.reason}; "
            f"{result.counters}"
        )


class Recorder:
    """Collects pictures of the simulator for a GIF, ten a second."""

    def __init__(self, robot: Any, path: Path) -> None:
        self._robot, self._path = robot, path
        self._pictures: list[Any] = []
        self._due_s = 0.0

    def look(self) -> None:
        """Take a picture if it is time."""
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + 0.1
            self._pictures.append(self._robot.get_observation()["front"])

    def save(self) -> None:
        """Write the file."""
        from featherweight.robot.sim.film import write_gif

        write_gif(self._path, self._pictures, fps=10)
        print(f"Film: {self._path}")


def open_window(robot: Any) -> Any:
    """Open MuJoCo's window; None, and a sentence, where there is no display."""
    import os
    import sys

    world = robot.world
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        print("No display: the terminal tells the angles.")
        return None
    import mujoco.viewer

    try:
        return mujoco.viewer.launch_passive(world.model, world.data)
    except RuntimeError as error:
        print(f"No window ({error}): the terminal tells the angles.")
        return None


def check_room(asked: str, own: str) -> None:
    """Refuse the files of another room."""
    if asked != own:
        raise ConfigError(
            f"fw robot: room={asked} is not the room of these files; expected {own}. Use the files of {asked}."
        )


def unknown_choice(where: str, key: str, value: str, known: Any) -> str:
    """Say that a choice is unknown, and which ones there are."""
    return f"{where}: {key}={value} is unknown; expected one of {', '.join(known)}. {did_you_mean(value, known)}"


def timer(duration_s: float | None) -> threading.Event:
    """Return an event that is set after a time, or never."""
    stop = threading.Event()
    if duration_s is not None:
        timer = threading.Timer(duration_s, stop.set)
        timer.daemon = True
        timer.start()
    return stop


def wait(duration_s: float | None) -> None:
    """Wait for a time, or for Ctrl-C."""
    try:
        timer(duration_s).wait()
    except KeyboardInterrupt:
        pass
