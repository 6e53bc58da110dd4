"""`fw robot`: drive, simulate, emulate and teleoperate the arm, on one computer or over a network."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli.robot_devices import (
    Recorder,
    check_room,
    make_follower,
    make_inputs,
    make_leader,
    open_window,
    run_teleoperation,
    timer,
    unknown_choice,
    wait,
)
from featherweight.cli.screen import AsJson, print_json
from featherweight.errors import ConfigError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="A desktop arm: simulate, teleoperate, share.")
class_app = typer.Typer(no_args_is_help=True, help="Rooms: who may do what.")
app.add_typer(class_app, name="class")

Port = Annotated[str, typer.Option(help='Serial port, "auto", or "sim" for an emulated kit.')]
Duration = Annotated[
    float | None, typer.Option(min=0.1, help="Seconds; default: until Ctrl-C or Esc.", show_default=False)
]
Room = Annotated[str, typer.Option(help="Name of the room.")]
ClassFolder = Annotated[
    Path, typer.Option("--class", help="Folder that fw robot class init made: a room's or a participant's.")
]
LeaderName = Annotated[str, typer.Option("--leader", help="keyboard, pots, gamepad, expert or sine.")]
RobotName = Annotated[str, typer.Option("--robot", help="Name of the robot in the room.")]
Fps = Annotated[float, typer.Option(min=5, max=200, help="Control steps a second.")]


@app.command()
def sim(
    scene: Annotated[str, typer.Option(help="empty, challenge or student.")] = "challenge",
    leader: LeaderName = "keyboard",
    gripper_file: Annotated[Path | None, typer.Option(help="MJCF of your own gripper.", show_default=False)] = None,
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
    """
    from featherweight.robot.sim.robot import SimRobot, SimRobotConfig

    config = {"scene": scene, "cubes": cubes, "seed": seed, "gripper_file": gripper_file and str(gripper_file)}
    if gif is not None:
        config["cameras"] = ("front",)
    robot = SimRobot(SimRobotConfig.parse(config, where="fw robot sim"))
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


@app.command()
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

    on_pulse = None
    if physics:
        from featherweight.robot.sim.world import World

        on_pulse = World().pulse
    faults = FaultConfig().override(fault or [], where="fw robot emulate")
    kit = EmulatedKit(make_inputs(inputs), boot, faults=faults, on_pulse=on_pulse)
    with PseudoTerminal(kit, None if pty is None else str(pty), time_scale) as terminal:
        print(terminal.path, flush=True)
        wait(duration)
    counts = kit.firmware.counts
    print(f"commands accepted {counts.accepted}, rejected {counts.rejected}; bytes lost {counts.overflowed_bytes}")


@app.command()
def teleop(
    leader: LeaderName = "keyboard",
    follower: Annotated[str, typer.Option(help="umirobot (a kit) or sim (MuJoCo).")] = "umirobot",
    port: Port = "auto",
    leader_port: Annotated[str | None, typer.Option(help="Of pots; default: --port.", show_default=False)] = None,
    fps: Fps = 60.0,
    duration: Duration = None,
    as_json: AsJson = False,
) -> None:
    """Let a leader drive a follower on this computer.

    [bold]Examples[/bold]

    fw robot teleop --leader pots --follower umirobot --port auto

    fw robot teleop --leader keyboard --port sim
    """
    robot = make_follower(follower, port)
    with robot:
        run_teleoperation(make_leader(leader, leader_port or port, robot), robot, fps, duration, as_json)


@app.command()
def relay(
    class_folder: ClassFolder = Path("class"),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other computers.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7443,
    transport: Annotated[str, typer.Option(help="websocket or zenoh.")] = "websocket",
    duration: Duration = None,
) -> None:
    """Connect the robots and operators of a room; every message is encrypted and checked."""
    if transport == "websocket":
        from featherweight.robot.network.relay import Relay

        running: Any = Relay(class_folder, host, port).start()
        print(f"relay: {running.uri}", flush=True)
    elif transport == "zenoh":
        from featherweight.robot.network.zenoh import ZenohRelay

        running = ZenohRelay(class_folder, f"tls/{host}:{port}")
        print(f"relay: tls/{host}:{port}", flush=True)
    else:
        raise ConfigError(unknown_choice("relay", "transport", transport, ("websocket", "zenoh")))
    try:
        wait(duration)
    finally:
        running.close()


@app.command()
def serve(
    room: Room,
    address: Annotated[str, typer.Option("--relay", help="wss://host:port or tls/host:port.")] = "wss://127.0.0.1:7443",
    class_folder: ClassFolder = Path("class"),
    name: Annotated[str | None, typer.Option("--robot", help="Which robot of the room.", show_default=False)] = None,
    follower: Annotated[str, typer.Option(help="umirobot (a kit) or sim (MuJoCo).")] = "umirobot",
    port: Port = "auto",
    duration: Duration = None,
    as_json: AsJson = False,
) -> None:
    """Let operators of a room drive this computer's robot, one at a time."""
    from featherweight.robot.network.connect import connect, find_membership
    from featherweight.robot.network.follower_side import serve as run_serve
    from featherweight.robot.network.topics import Topics

    member = find_membership(class_folder, name, "robot")
    check_room(room, member.room)
    robot = make_follower(follower, port)
    with robot:
        transport = connect(address, member)
        try:
            print(f"{member.name} serves in {room}. Ctrl-C ends.", flush=True)
            side = run_serve(robot, transport, Topics(room, member.name), stop=timer(duration))
        finally:
            transport.close()
    if as_json:
        print_json(side.status())


@app.command()
def join(
    room: Room,
    address: Annotated[str, typer.Option("--relay", help="wss://host:port or tls/host:port.")] = "wss://127.0.0.1:7443",
    class_folder: ClassFolder = Path("class"),
    name: Annotated[str | None, typer.Option("--as", help="Which member of the room.", show_default=False)] = None,
    robot: RobotName = "arm1",
    leader: LeaderName = "keyboard",
    port: Port = "auto",
    duration: Duration = None,
    as_json: AsJson = False,
) -> None:
    """Drive a robot of a room from here."""
    from rich.console import Console

    from featherweight.robot.network.connect import connect, find_membership
    from featherweight.robot.network.operator_side import OperatorSide
    from featherweight.robot.network.operator_side import join as run_join
    from featherweight.robot.network.topics import Topics

    member = find_membership(class_folder, name, "operator")
    check_room(room, member.room)
    device = make_leader(leader, port, None)
    stop, screen = timer(duration), Console(stderr=True)

    def show(side: OperatorSide) -> None:
        if getattr(device, "is_left", False):
            stop.set()
        if side.state is not None and screen.is_terminal and side.state.sequence % 20 == 0:
            holder = "you" if side.has_robot else side.status.get("holder") or "nobody"
            text = f"{side.state.mode.name} driven by {holder}, round trip {side.delays.round_trip_ms.p50:.0f} ms"
            screen.print(f"{text}, {side.status.get('reason', '')}", end="\r")

    transport = connect(address, member)
    try:
        with device:
            side = run_join(
                device, transport, Topics(room, robot), member.name, member.role == "instructor", stop, show
            )
            time.sleep(0.1)
    finally:
        transport.close()
    result = {"round_trip_ms": vars(side.delays.round_trip_ms), "has_driven": side.has_driven}
    result |= {"status": side.status, "counters": dict(side.counters)}
    if as_json:
        print_json(result)
    else:
        print(f"round trip {side.delays.round_trip_ms.p50:.1f} ms (p99 {side.delays.round_trip_ms.p99:.1f})")


@app.command()
def ports(as_json: AsJson = False) -> None:
    """List the serial ports of this computer, likely kits first."""
    from featherweight.robot.driver.ports import list_ports

    found = list_ports()
    if as_json:
        print_json({"ports": [vars(info) for info in found]})
        return
    for info in found:
        print(f"{info.path}  {info.description}{'  (likely a kit)' if info.is_likely else ''}")
    if not found:
        print("No serial port. Plug a kit in, or use --port sim, which needs none.")


@app.command()
def doctor(
    port: Annotated[str | None, typer.Option(help="Examine the kit on this port.", show_default=False)] = None,
    move: Annotated[bool, typer.Option("--move", help="Move each of its joints by 5 degrees there and back.")] = False,
    real: Annotated[bool, typer.Option("--real", help="Show what a person checks on a real kit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what works here: packages, graphics, ports, a kit."""
    from featherweight.robot.doctor import CHECKLIST, diagnose

    report = diagnose(port, move)
    if real:
        report.add_table("Checklist", ["step", "check"], [[i, text] for i, text in enumerate(CHECKLIST, start=1)])
    if as_json:
        print_json(json.loads(report.to_json()))
    else:
        report.print_terminal()


@app.command()
def calibrate(
    id: Annotated[str, typer.Option(help="Name of the leader; names its file.")] = "pots",
    port: Port = "auto",
    channels: Annotated[str, typer.Option(help="Which potentiometers, such as 1,2,3.")] = "1,2,3,4,5,6",
    seconds: Annotated[float, typer.Option(min=0.5, max=120, help="For each channel.")] = 8.0,
) -> None:
    """Learn the ranges of potentiometers and save them.

    Each one is turned from its low end to its high end and back, twice. Nothing is saved unless all of them are right.
    """
    from featherweight.robot.leaders.potentiometer import PotLeader, PotLeaderConfig

    try:
        wanted = [int(word) - 1 for word in channels.split(",")]
    except ValueError:
        wanted = [-1]
    if not wanted or not set(wanted) <= set(range(6)):
        raise ConfigError(
            f"fw robot calibrate: channels={channels} are no potentiometers; expected 1 to 6. Write 1,2,3."
        )
    with PotLeader(PotLeaderConfig(port=port, id=id)) as leader:
        for channel in wanted:
            print(
                f"Potentiometer {channel + 1}: start at the low end, turn to the high end and back, twice "
                f"({seconds:g} s)."
            )
            leader.record_channel(channel, seconds)
        print(f"Saved: {leader.calibration.save()}")


@class_app.command("init")
def class_init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")] = Path("class"),
    room: Room = "lab1",
    member: Annotated[
        list[str] | None, typer.Option("--member", "-m", help="name:role; robot, operator, instructor, observer.")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Names and addresses of the relay.", show_default=False)
    ] = None,
) -> None:
    """Make the certificates, tokens and access rules of a room.

    [bold]Example[/bold]

    fw robot class init class --room lab1 -m arm1:robot -m alice:operator -m teacher:instructor --host lab.example.org
    """
    from featherweight.robot.network.certificates import create_room

    members = {}
    for entry in member or ["arm1:robot", "operator:operator", "instructor:instructor", "observer:observer"]:
        name, _, role = entry.partition(":")
        members[name] = role
    create_room(folder, room, members, ["localhost", "127.0.0.1", *(host or [])])
    print(
        f"Made {folder}. Give each participant the folder {folder / 'members'}/NAME and nothing else; keep "
        f"ca.key secret."
    )
