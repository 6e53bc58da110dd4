"""`fw robot relay|serve|join|class init`: robots and operators of a room, each on its own computer."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli.robot_devices import (
    CameraWishes,
    check_room,
    make_follower,
    make_leader,
    timer,
    unknown_choice,
    wait,
)
from featherweight.cli.robot_options import (
    CameraFormat,
    CameraRate,
    Cameras,
    CameraSize,
    ClassFolder,
    Duration,
    LeaderName,
    MemberName,
    Port,
    RelayAddress,
    RobotName,
    Room,
)
from featherweight.cli.screen import AsJson, print_json
from featherweight.errors import ConfigError


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


def serve(
    room: Room,
    address: RelayAddress = "wss://127.0.0.1:7443",
    class_folder: ClassFolder = Path("class"),
    name: Annotated[str | None, typer.Option("--robot", help="Which robot of the room.", show_default=False)] = None,
    follower: Annotated[str, typer.Option(help="umirobot (a kit) or sim (MuJoCo).")] = "umirobot",
    port: Port = "auto",
    camera: Cameras = None,
    size: CameraSize = None,
    rate: CameraRate = None,
    input_format: CameraFormat = None,
    duration: Duration = None,
    as_json: AsJson = False,
) -> None:
    """Let operators of a room drive this computer's robot, one at a time."""
    from featherweight.robot.network.connect import connect, find_membership
    from featherweight.robot.network.follower_side import serve as run_serve
    from featherweight.robot.network.topics import Topics

    member = find_membership(class_folder, name, "robot")
    check_room(room, member.room)
    robot = make_follower(follower, port, CameraWishes(camera, size, rate, input_format))
    with robot:
        transport = connect(address, member)
        try:
            print(f"{member.name} serves in {room}. Ctrl-C ends.", flush=True)
            side = run_serve(robot, transport, Topics(room, member.name), stop=timer(duration))
        finally:
            transport.close()
    if as_json:
        print_json(side.status())


def join(
    room: Room,
    address: RelayAddress = "wss://127.0.0.1:7443",
    class_folder: ClassFolder = Path("class"),
    name: MemberName = None,
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
