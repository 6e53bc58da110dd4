"""`fw robot sim|emulate|teleop`: an arm on this computer, real or not."""

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.robot_devices import (
    CameraWishes,
    Recorder,
    make_follower,
    make_inputs,
    make_leader,
    open_window,
    run_teleoperation,
    wait,
)
from featherweight.cli.robot_options import (
    CameraFormat,
    CameraRate,
    Cameras,
    CameraSize,
    Duration,
    FollowerName,
    Fps,
    LeaderName,
    Port,
)
from featherweight.cli.screen import AsJson
from featherweight.errors import ConfigError


def sim(
    scene: Annotated[str, typer.Option(help="empty, challenge or student.")] = "challenge",
    leader: LeaderName = "keyboard",
    gripper_file: Annotated[Path | None, typer.Option(help="MJCF of your own gripper.", show_default=False)] = None,
    gripper: Annotated[
        Path | None,
        typer.Option(help="Printed gripper of your own, my_gripper.py, on the kit's printed arm.", show_default=False),
    ] = None,
    printed: Annotated[bool, typer.Option("--printed", help="Show and weigh the kit's printed parts.")] = False,
    cubes: Annotated[int, typer.Option(min=1, max=6, help="Of the challenge.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the layout.")] = 0,
    duration: Duration = None,
    viewer: Annotated[
        bool, typer.Option(help="Show a window; without a display the terminal tells the angles.")
    ] = True,
    gif: Annotated[Path | None, typer.Option(help="Record a moving picture to this file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Drive an arm with cubes on a table in MuJoCo; no hardware.

    [bold]Examples[/bold]

    fw robot sim

    fw robot sim --leader expert --duration 20 --gif expert.gif

    fw robot sim --gripper my_gripper.py
    """
    from featherweight.robot.sim.robot import SimRobot, SimRobotConfig

    config = {"scene": scene, "cubes": cubes, "seed": seed, "gripper_file": gripper_file and str(gripper_file)}
    if gif is not None:
        config["cameras"] = ("front",)
    parts = None
    if printed or gripper is not None:
        from featherweight.robot.hardware.simulated import arm_with

        parts = arm_with(gripper)
    robot = SimRobot(SimRobotConfig.parse(config, where="fw robot sim"), parts)
    window = open_window(robot) if viewer else None
    recorder = Recorder(robot, gif) if gif is not None else None
    try:
        with robot:
            run_teleoperation(make_leader(leader, "auto", robot), robot, 60.0, duration, as_json, window, recorder)
    finally:
        if window is not None:
            window.close()
    if recorder is not None:
        recorder.save()


def emulate(
    pty: Annotated[
        Path | None, typer.Option(help="A link to the port, which stays the same.", show_default=False)
    ] = None,
    inputs: Annotated[
        str, typer.Option(help="constant, sine, floating, csv:FILE or file:FILE (written by another process).")
    ] = "sine",
    fault: Annotated[
        list[str] | None, typer.Option(help="A fault and its rate, such as bit_flip=0.01.", show_default=False)
    ] = None,
    physics: Annotated[bool, typer.Option(help="Put the arm of the simulator behind the servos.")] = False,
    boot: Annotated[float, typer.Option(min=0, help="Seconds of silence after the port was opened.")] = 1.6,
    firmware: Annotated[str, typer.Option(help="published, or own: the checked protocol.")] = "published",
    time_scale: Annotated[float, typer.Option(min=0.01, help="Seconds of the kit per second.")] = 1.0,
    duration: Duration = None,
) -> None:
    """Open a serial port that behaves byte for byte like the kit (Linux, macOS).

    [bold]Examples[/bold]

    fw robot emulate --pty /tmp/kit

    fw robot emulate --fault bit_flip=0.01 --fault reset=0.001
    """
    from featherweight.robot.emulator.emulated_kit import EmulatedKit
    from featherweight.robot.emulator.faults import FaultConfig
    from featherweight.robot.emulator.pseudo_terminal import PseudoTerminal

    if firmware not in ("published", "own"):
        raise ConfigError(f"fw robot emulate: firmware={firmware} is unknown; expected published or own. Choose one.")
    on_pulse = None
    if physics:
        from featherweight.robot.sim.world import World

        on_pulse = World().pulse
    faults = FaultConfig().override(fault or [], where="fw robot emulate")
    kit = EmulatedKit(make_inputs(inputs), boot, faults=faults, on_pulse=on_pulse, firmware=firmware)  # type: ignore[arg-type]
    with PseudoTerminal(kit, None if pty is None else str(pty), time_scale) as terminal:
        print(terminal.path, flush=True)
        wait(duration)
    counts = kit.firmware.counts
    print(f"commands accepted {counts.accepted}, rejected {counts.rejected}; bytes lost {counts.overflowed_bytes}")


def teleop(
    leader: LeaderName = "keyboard",
    follower: FollowerName = "umirobot",
    port: Port = "auto",
    leader_port: Annotated[str | None, typer.Option(help="Of pots; default: --port.", show_default=False)] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Of leader policy: folder of a run of fw robot train.", show_default=False)
    ] = None,
    camera: Cameras = None,
    size: CameraSize = None,
    rate: CameraRate = None,
    input_format: CameraFormat = None,
    fps: Fps = 60.0,
    duration: Duration = None,
    as_json: AsJson = False,
) -> None:
    """Let a leader drive a follower on this computer.

    [bold]Examples[/bold]

    fw robot teleop --leader pots --follower umirobot --port auto

    fw robot teleop --leader keyboard --port sim

    fw robot teleop --leader policy --policy runs/robot --port auto --camera front=/dev/video0
    """
    if policy is not None:
        from featherweight.robot.learning.options import policy_folder

        policy_folder(policy)  # said before a device is touched
    robot = make_follower(follower, port, CameraWishes(camera, size, rate, input_format))
    with robot:
        device = make_leader(leader, leader_port or port, robot, policy)
        run_teleoperation(device, robot, fps, duration, as_json)
