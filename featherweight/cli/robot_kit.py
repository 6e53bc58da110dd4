"""`fw robot ports|doctor|calibrate`: find a kit, examine it, learn the ranges of its potentiometers."""

import json
from typing import Annotated

import typer

from featherweight.cli.robot_options import Port
from featherweight.cli.screen import AsJson, print_json
from featherweight.errors import ConfigError


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
