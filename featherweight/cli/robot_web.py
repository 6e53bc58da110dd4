"""`fw robot web`: the arm in a browser of this computer."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featherweight.cli.robot_devices import CameraWishes, check_room, make_follower, wait
from featherweight.cli.robot_options import (
    CameraFormat,
    CameraRate,
    Cameras,
    CameraSize,
    ClassFolder,
    Duration,
    MemberName,
    Port,
    RelayAddress,
    RobotName,
)
from featherweight.cli.screen import AsJson, print_json

if TYPE_CHECKING:
    from featherweight.robot.web.rooms import PageRoom
    from featherweight.robot.web.server import WebServer


def web(
    follower: Annotated[str, typer.Option("--follower", help="sim (MuJoCo, no hardware) or umirobot (a kit).")] = "sim",
    port: Port = "auto",
    camera: Cameras = None,
    size: CameraSize = None,
    rate: CameraRate = None,
    input_format: CameraFormat = None,
    impair: Annotated[
        str, typer.Option(help="Feel a network: lan, continent, tokyo-dhaka, satellite, or words like 150ms+-30,1%.")
    ] = "",
    listen: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 8765,
    token: Annotated[
        str | None, typer.Option(help="Key of the page; default: a new one each time.", show_default=False)
    ] = None,
    room: Annotated[str | None, typer.Option(help="Drive a robot of this room.", show_default=False)] = None,
    address: RelayAddress = "wss://127.0.0.1:7443",
    class_folder: ClassFolder = Path("class"),
    name: MemberName = None,
    robot_name: RobotName = "arm1",
    duration: Duration = None,
    as_json: AsJson = False,
) -> None:
    """Drive an arm from a page of this computer: sliders, pad, gamepad, camera; it loads nothing from elsewhere.

    The arm moves only while a control is held. Open the address that is printed; nobody gets in without its key.

    [bold]Examples[/bold]

    fw robot web

    fw robot web --follower umirobot --port auto --camera /dev/video0

    fw robot web --room lab1 --class members/alice --relay wss://lab.example.org:7443
    """
    from featherweight.robot.challenge.run import parse_impairment
    from featherweight.robot.web.rooms import LocalRoom, RemoteRoom
    from featherweight.robot.web.server import WebServer

    key = token or secrets.token_urlsafe(16)
    if room is not None:
        from featherweight.robot.network.connect import connect, find_membership

        member = find_membership(class_folder, name, "operator")
        check_room(room, member.room)
        pages: PageRoom = RemoteRoom(room, robot_name, member.name, member.role, key, lambda: connect(address, member))
        _serve(WebServer({"": pages}, port=listen), key, duration, as_json)
        return
    wishes = CameraWishes(_cameras(follower, camera), size, rate, input_format)
    with make_follower(follower, port, wishes) as robot:
        local = LocalRoom(robot, key, parse_impairment(impair) if impair else None)
        try:
            _serve(WebServer({"": local}, port=listen), key, duration, as_json)
        finally:
            local.close()


def _cameras(follower: str, wanted: list[str] | None) -> tuple[str, ...]:
    """Return the simulator's cameras; without graphics the page has none, which one sentence says."""
    if wanted is not None or follower != "sim":
        return tuple(wanted or ())
    from featherweight.robot.sim.graphics import INSTALL_GRAPHICS, working_graphics

    if working_graphics() is None:
        print(f"No pictures: no graphics work here. Run {INSTALL_GRAPHICS}.", flush=True)
        return ()
    return ("front",)


def _serve(server: "WebServer", key: str, duration: float | None, as_json: bool) -> None:
    server.start()
    try:
        print(f"{server.uri}#key={key}", flush=True)
        wait(duration)
    except KeyboardInterrupt:
        pass  # before the waiting began
    finally:
        server.close()
    if as_json:
        print_json(dict(server.counters))
