"""`fw robot kit ...` and `fw robot flash`: parts, bill, pre-flight of designs, firmware."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.screen import AsJson, print_json
from featherweight.errors import ConfigError

kit_app = typer.Typer(no_args_is_help=True, help="The kit itself: printed parts, bill, wiring, designs of your own.")

DimensionsFile = Annotated[
    Path | None,
    typer.Option("--dimensions", help="YAML or JSON with other servos, screws, clearances.", show_default=False),
]


def _dimensions(path: Path | None) -> "object":
    from featherweight.robot.hardware.dimensions import Dimensions

    return Dimensions() if path is None else Dimensions.from_file(path)


@kit_app.command()
def bom(as_json: AsJson = False) -> None:
    """Print the bill of materials with price ranges."""
    from featherweight.report import Report
    from featherweight.robot.hardware.assembly import Assembly
    from featherweight.robot.hardware.bill import LIMIT_USD, PRICES_OF, bill, total_usd
    from featherweight.robot.hardware.guide import printed_kg

    items = bill(printed_kg(Assembly()))
    low, high = total_usd(items)
    if as_json:
        print_json({"prices": PRICES_OF, "total_usd": [low, high], "items": [vars(item) for item in items]})
        return
    report = Report("Bill of materials")
    rows = [
        [
            item.name,
            f"{item.count:g}",
            item.used_for,
            f"{item.count * item.low_usd:.2f}-{item.count * item.high_usd:.2f}",
            item.instead,
        ]
        for item in items
    ]
    report.add_table(f"Parts (prices: {PRICES_OF})", ["part", "count", "used for", "USD", "instead"], rows)
    report.print_terminal()
    print(f"Total: {low:.2f} to {high:.2f} USD; the promise is less than {LIMIT_USD:g}.")


@kit_app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("kit"),
    dimensions: DimensionsFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it is there.")] = False,
    compile_firmware: Annotated[bool, typer.Option("--compile", help="Compile the firmware with avr-gcc.")] = False,
    reader: Annotated[str, typer.Option(help="Of --compile: strict or v1 (as published).")] = "strict",
) -> None:
    """Write STL, 3MF, plates, wiring.svg, assembly.pdf, bill and firmware.hex.

    [bold]Examples[/bold]

    fw robot kit build --out kit/
    """
    from featherweight.config.files import write_atomically
    from featherweight.robot.hardware.build import build_kit
    from featherweight.robot.hardware.firmware_file import build_firmware

    compiled = build_firmware(reader) if compile_firmware else None
    files, left_out = build_kit(out, _dimensions(dimensions), force)  # type: ignore[arg-type]
    if compiled is not None:
        write_atomically(out / "firmware.hex", compiled)
    print(f"Wrote {len(files)} files to {out}.")
    for sentence in left_out:
        print(sentence)


@kit_app.command()
def check(
    design: Annotated[Path, typer.Argument(help="my_gripper.py, or a part as STL, 3MF, OBJ, PLY.", show_default=False)],
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures.", show_default=False)] = None,
    dimensions: DimensionsFile = None,
    as_json: AsJson = False,
) -> None:
    """Examine a design: closed, thick enough, fits printer, servo and horn, collides with nothing, light enough.

    [bold]Examples[/bold]

    fw robot kit check my_gripper.py --pictures look
    """
    from featherweight.robot.hardware.check import check as examine
    from featherweight.robot.hardware.check import draw_faults

    result = examine(design, _dimensions(dimensions))  # type: ignore[arg-type]
    if pictures is not None and result.parts:
        from PIL import Image

        pictures.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_faults(result)).save(pictures / f"{design.stem}.png")
    faults = [{"part": part, "fault": fault.name, "text": fault.text} for part, fault in result.faults]
    if as_json:
        print_json({"file": str(design), "is_good": not faults, "faults": faults, "figures": result.figures})
    else:
        for one in faults:
            print(f"{one['part']}: {one['fault']}: {one['text']}")
        for name, value in result.figures.items():
            print(f"{name}: {value}")
        print(f"{design}: {f'{len(faults)} faults' if faults else 'good'}")
    if faults:
        raise typer.Exit(1)


@kit_app.command()
def template(
    kind: Annotated[str, typer.Argument(help="gripper or master.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default=False)] = None,
) -> None:
    """Write a design to start from."""
    from featherweight.robot.hardware import templates

    source = Path(templates.__file__).parent / f"my_{kind}.py"
    if not source.is_file():
        raise ConfigError(f"fw robot kit template: kind={kind} is unknown; expected gripper or master. Choose one.")
    target = out or Path(source.name)
    if target.exists():
        raise ConfigError(
            f"fw robot kit template: out={target} is there already; expected a free name. Choose another."
        )
    shutil.copyfile(source, target)
    print(f"Wrote {target}.")


def flash(
    port: Annotated[str, typer.Option(help='Serial port of the board, or "auto".')] = "auto",
    firmware: Annotated[
        Path | None, typer.Option(help="Another Intel hex file than the one that ships.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the firmware to a board with avrdude; asks first, keeps the old one, verifies.

    [bold]Examples[/bold]

    fw robot flash --port auto
    """
    from featherweight.config.files import write_atomically
    from featherweight.robot.calibration_file import cache_folder
    from featherweight.robot.hardware.firmware_file import shipped_firmware
    from featherweight.robot.hardware.flash import flash as write

    if firmware is None:
        firmware = cache_folder() / "firmware" / "firmware.hex"
        write_atomically(firmware, shipped_firmware())
    done = write(port, firmware, lambda question: yes or typer.confirm(question, err=as_json))
    if as_json:
        print_json({"port": done.port, "is_written": done.is_written, "backup": done.backup and str(done.backup)})
    elif done.is_written:
        print(f"Written and verified on {done.port}. Next: fw robot doctor --port {done.port}")
    else:
        print("Nothing was written.")
