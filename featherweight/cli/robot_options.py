"""Options that several commands of `fw robot` have."""

import re
from pathlib import Path
from typing import Annotated

import typer

from featherweight.errors import ConfigError

Port = Annotated[str, typer.Option(help='Serial port, "auto", or "sim" for an emulated kit.')]
Duration = Annotated[
    float | None, typer.Option(min=0.1, help="Seconds; default: until Ctrl-C or Esc.", show_default=False)
]
Room = Annotated[str, typer.Option(help="Name of the room.")]
ClassFolder = Annotated[
    Path, typer.Option("--class", help="Folder that fw robot class init made: a room's or a participant's.")
]
LeaderName = Annotated[
    str, typer.Option("--leader", help="keyboard, pots, gamepad, expert, sine; in teleop policy, too.")
]
FollowerName = Annotated[str, typer.Option("--follower", help="umirobot (a kit) or sim (MuJoCo).")]
RobotName = Annotated[str, typer.Option("--robot", help="Name of the robot in the room.")]
Fps = Annotated[float, typer.Option(min=5, max=200, help="Control steps a second.")]
RelayAddress = Annotated[str, typer.Option("--relay", help="wss://host:port or tls/host:port.")]
MemberName = Annotated[str | None, typer.Option("--as", help="Which member of the room.", show_default=False)]
Cameras = Annotated[
    list[str] | None,
    typer.Option(
        "--camera",
        help="front, top, wrist of the simulator; or a real one as SOURCE or NAME=SOURCE: /dev/video0, a name that fw "
        "robot cameras lists, http://..., a file, test.",
        show_default=False,
    ),
]
CameraSize = Annotated[
    str | None, typer.Option("--size", help="Of pictures, width x height, both even, as 640x480.", show_default=False)
]
CameraRate = Annotated[
    float | None,
    typer.Option("--rate", min=1, max=240, help="Pictures a second that cameras shall give.", show_default=False),
]
CameraFormat = Annotated[
    str | None,
    typer.Option("--format", help="How cameras of this computer send pictures, such as mjpeg.", show_default=False),
]
Offsets = Annotated[
    str, typer.Option(help="Of the simulator: errors of assembly of the five joints in degrees, such as 2,-3,4,-2,3.")
]


def read_size(where: str, words: str | None) -> tuple[int, int] | None:
    """Return the (width, height) of the option `CameraSize`; None if it was left out.

    Raises:
        ConfigError: if they are no two even numbers.
    """
    if words is None:
        return None
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", words)
    width_px, height_px = map(int, found.groups()) if found else (0, 0)
    # Video codecs halve the colours.
    if not (16 <= width_px <= 7680 and 16 <= height_px <= 4320) or width_px % 2 or height_px % 2:
        raise ConfigError(f"{where}: size={words} is none; expected two even numbers from 16 on. Write 640x480.")
    return width_px, height_px


def read_offsets(where: str, words: str) -> list[float]:
    """Return the (6,) degrees of the option `Offsets`.

    Raises:
        ConfigError: if they are no five numbers of a few degrees.
    """
    try:
        numbers = [float(word) for word in words.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 5 or not all(abs(number) <= 10 for number in numbers):
        raise ConfigError(
            f"{where}: offsets={words} cannot be simulated; expected five numbers from -10 to 10. Write 2,-3,4,-2,3."
        )
    return [*numbers, 0.0]
