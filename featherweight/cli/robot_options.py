"""Options that several commands of `fw robot` have."""

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
LeaderName = Annotated[str, typer.Option("--leader", help="keyboard, pots, gamepad, expert or sine.")]
RobotName = Annotated[str, typer.Option("--robot", help="Name of the robot in the room.")]
Fps = Annotated[float, typer.Option(min=5, max=200, help="Control steps a second.")]
RelayAddress = Annotated[str, typer.Option("--relay", help="wss://host:port or tls/host:port.")]
MemberName = Annotated[str | None, typer.Option("--as", help="Which member of the room.", show_default=False)]
Cameras = Annotated[
    list[str] | None, typer.Option("--camera", help="Of the simulator: front, top, wrist.", show_default=False)
]
Offsets = Annotated[
    str, typer.Option(help="Of the simulator: errors of assembly of the five joints in degrees, such as 2,-3,4,-2,3.")
]


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
