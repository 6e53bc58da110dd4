"""Writes everything that a kit needs into one folder."""

import json
from pathlib import Path
from typing import Any

from featherweight.config.files import new_folder
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.hardware.assembly import Assembly
from featherweight.robot.hardware.bill import PRICES_OF, bill, total_usd
from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.firmware_file import shipped_firmware
from featherweight.robot.hardware.guide import assembly_pdf, printed_kg
from featherweight.robot.hardware.masses import body_masses, static_loads, workspace
from featherweight.robot.hardware.printed import plates, printed_parts
from featherweight.robot.hardware.step import step_bytes
from featherweight.robot.hardware.stl import stl_bytes, threemf_bytes
from featherweight.robot.hardware.wiring import wiring_svg


def figures(assembly: Assembly, postures: int = 20_000) -> dict[str, Any]:
    """Return what the geometry says: masses of bodies, loads of joints with their margin, the workspace of postures."""
    from featherweight.robot.hardware.assembly import BODIES

    masses = body_masses(assembly)
    return {
        "mass_g": {name: round(mass.mass_kg * 1e3, 1) for name, mass in zip(BODIES, masses, strict=True)},
        "static_load": [
            {
                "joint": load.joint,
                "needed_nm": round(load.needed_nm, 4),
                "stall_nm": load.stall_nm,
                "margin": round(load.margin, 2) if load.needed_nm > 1e-6 else None,
            }
            for load in static_loads(assembly)
        ],
        "workspace": {key: [round(value, 4) for value in values] for key, values in workspace(postures).items()},
        "printed_g": round(printed_kg(assembly) * 1e3, 1),
    }


def build_kit(out: Path, dimensions: Dimensions | None = None, replace: bool = False) -> tuple[list[Path], list[str]]:
    """Write STL, 3MF and STEP of every part, plates, wiring, guide, bill, figures, firmware and the dimensions.

    Args:
        out: folder to make; a folder that is there is only replaced if `replace`.
        dimensions: of the parts.
        replace: whether a folder that is there may be replaced.
    Returns:
        the files, and one sentence for each thing that could not be made here.
    Raises:
        ConfigError: if the folder is there already, cannot be written, or a part does not fit the printer.
        MissingExtraError: if the packages of the extra `kit` are missing.
    Cost: ten seconds, mostly pictures.
    """
    if out.exists() and not replace and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"fw robot kit build: out={out} is there already; expected a new folder. Choose another, or --force."
        )
    assembly = Assembly(dimensions)
    parts = printed_parts(assembly)
    beds = plates(parts, assembly.dimensions)
    left_out: list[str] = []
    contents: dict[str, bytes | str] = {}
    for part in parts:
        contents[f"stl/{part.name}.stl"] = stl_bytes(part.solid)
        contents[f"3mf/{part.name}.3mf"] = threemf_bytes([(part.name, part.solid)])
        contents[f"step/{part.name}.step"] = step_bytes(part.name, part.solid)
    for number, plate in enumerate(beds, start=1):
        contents[f"plates/plate_{number}.3mf"] = threemf_bytes(plate.items)
    contents["wiring.svg"] = wiring_svg()
    contents["firmware.hex"] = shipped_firmware()
    contents["bill.json"] = bill_json(assembly)
    contents["figures.json"] = json.dumps(figures(assembly), indent=2) + "\n"
    contents["dimensions.json"] = assembly.dimensions.model_dump_json(indent=2) + "\n"
    try:
        contents["assembly.pdf"] = assembly_pdf(assembly)
    except DeviceError as error:
        left_out.append(f"assembly.pdf is not made: {error}")
    try:
        with new_folder(out, replace=replace) as folder:
            for name, content in contents.items():
                path = folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ConfigError(
            f"fw robot kit build: out={out} cannot be written ({error.strerror}); expected a folder with space. "
            f"Choose another."
        ) from error
    return [out / name for name in contents], left_out


def bill_json(assembly: Assembly) -> str:
    """Return the bill as JSON."""
    items = bill(printed_kg(assembly))
    low, high = total_usd(items)
    return (
        json.dumps({"prices": PRICES_OF, "total_usd": [low, high], "items": [vars(item) for item in items]}, indent=2)
        + "\n"
    )
