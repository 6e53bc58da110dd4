"""`fw robot class init|serve|links|export`: rooms with certificates, and a classroom of them on one port."""

import json
from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.robot_devices import wait
from featherweight.cli.robot_options import Duration, Room
from featherweight.cli.screen import AsJson, print_json
from featherweight.errors import ConfigError

class_app = typer.Typer(no_args_is_help=True, help="Rooms: who may do what; a classroom with pages.")
Folder = Annotated[Path, typer.Argument(metavar="CLASS", help="Folder that init made.")]


@class_app.command("init")
def class_init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")] = Path("class"),
    room: Room = "lab1",
    member: Annotated[
        list[str] | None, typer.Option("--member", "-m", help="name:role; robot, operator, instructor, observer.")
    ] = None,
    students: Annotated[
        int, typer.Option(min=0, max=200, help="So many operators student01, student02, ... with a simulator each.")
    ] = 0,
    host: Annotated[
        list[str] | None, typer.Option(help="Names and addresses of the relay.", show_default=False)
    ] = None,
    authority: Annotated[
        Path | None,
        typer.Option(help="Folder of another class whose authority signs; needed for one port.", show_default=False),
    ] = None,
) -> None:
    """Make the certificates, tokens and access rules of a room.

    [bold]Examples[/bold]

    fw robot class init class --room lab1 -m arm1:robot -m alice:operator -m teacher:instructor --host lab.example.org

    fw robot class init class --room lab1 --students 30 -m teacher:instructor -m arm1:robot --host 192.168.1.20
    """
    from featherweight.robot.network.certificates import create_room

    members, owners = {}, {}
    if member is None:
        member = ["teacher:instructor", "visitor:observer"]
        if not students:
            member = ["arm1:robot", "operator:operator", "instructor:instructor", "observer:observer"]
    for entry in member:
        name, _, role = entry.partition(":")
        members[name] = role
    for number in range(1, students + 1):
        name = f"student{number:02d}"
        members[name], members[f"sim-{name}"] = "operator", "robot"
        owners[f"sim-{name}"] = name
    create_room(folder, room, members, ["localhost", "127.0.0.1", *(host or [])], owners, authority)
    print(
        f"Made {folder}. Give each participant the folder {folder / 'members'}/NAME and nothing else; keep "
        f"ca.key secret."
    )
    if students:
        print(f"Start it: fw robot class serve {folder}. Addresses of the pages: fw robot class links {folder}.")


@class_app.command("serve")
def class_serve(
    folders: Annotated[list[Path], typer.Argument(metavar="CLASS...", help="Folders that init made.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other computers.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7443,
    turn: Annotated[float, typer.Option(min=5, help="Seconds of a turn at a shared robot while others wait.")] = 300.0,
    cubes: Annotated[int, typer.Option(min=1, max=6, help="On the table of each simulator.")] = 3,
    camera: Annotated[
        list[str] | None,
        typer.Option(help="Pictures of each simulator: front, top, wrist; none is lightest.", show_default=False),
    ] = None,
    duration: Duration = None,
) -> None:
    """Serve the pages, robots and simulators of one or more classes on one port, encrypted.

    Robots and operators of the room (fw robot serve, fw robot join) use the same port.
    """
    from featherweight.robot.classroom.server import ClassServer

    server = ClassServer(folders, host, port, turn, cubes, camera or ()).start()
    try:
        print(f"{server.uri} serves {', '.join(server.rooms)}. Ctrl-C ends.", flush=True)
        wait(duration)
    except KeyboardInterrupt:
        pass  # before the waiting began
    finally:
        server.close()


@class_app.command("links")
def class_links(
    folder: Folder = Path("class"),
    address: Annotated[str, typer.Option(help="Of the server, as browsers reach it.")] = "https://127.0.0.1:7443",
    as_json: AsJson = False,
) -> None:
    """Print the address of everybody's page; it holds the key, so give each one to its person alone."""
    links = {}
    for path in sorted((folder / "members").glob("*/member.json")):
        member = json.loads(path.read_text(encoding="utf-8"))
        if member["role"] != "robot":
            token = (path.parent / "token").read_text(encoding="utf-8").strip()
            links[member["name"]] = f"{address.rstrip('/')}/{member['room']}/#key={token}"
    if not links:
        raise ConfigError(
            f"fw robot class links: class={folder} has no members; expected a folder of a class. Make it with init."
        )
    if as_json:
        print_json(links)
    else:
        print("\n".join(f"{name}  {link}" for name, link in links.items()))


@class_app.command("export")
def class_export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="A new file, such as class.zip.")],
    as_json: AsJson = False,
) -> None:
    """Write leader board, data sets and logs of a class to one archive; no key and no token."""
    from featherweight.robot.classroom.export import export_class

    names = export_class(folder, out)
    if as_json:
        print_json({"out": str(out), "files": names})
    else:
        print(f"{out} holds {len(names)} files.")
