"""`fw robot cameras|calibrate-camera`: which cameras there are; the joints' zero from pictures of two cards."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli.robot_devices import CameraWishes, make_follower
from featherweight.cli.robot_options import (
    CameraFormat,
    CameraRate,
    CameraSize,
    FollowerName,
    Offsets,
    Port,
    read_offsets,
)
from featherweight.cli.screen import AsJson, print_json
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from featherweight.robot.camera.calibrate import CameraCalibration
    from featherweight.robot.camera.view import CameraView


def cameras(as_json: AsJson = False) -> None:
    """List the cameras of this computer, and what each gives where the system tells."""
    from featherweight.robot.camera.source import list_cameras

    found = list_cameras()
    if as_json:
        print_json({"cameras": [vars(info) for info in found]})
        return
    for info in found:
        print("  ".join([info.source, info.description, *info.formats]))
    if not found:
        print("No camera. Plug one in, or use --camera test, which needs none; addresses and files are not listed.")


def calibrate_camera(
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures of a kit, with angles.csv: a file and its angles a line; with a camera's source: "
            "a new folder, where they are kept. Neither: the simulator.",
            show_default=False,
        ),
    ] = None,
    fovy: Annotated[float, typer.Option(min=5, max=120, help="Degrees that the height of a picture covers.")] = 42.0,
    poses: Annotated[int, typer.Option(min=8, max=500, help="Of the simulator.")] = 30,
    offsets: Offsets = "2,-3,4,-2,3",
    seed: Annotated[int, typer.Option(min=0, help="Of the poses.")] = 0,
    save: Annotated[
        str | None, typer.Option(help="Write what was found into the calibration of this kit.", show_default=False)
    ] = None,
    camera: Annotated[
        str,
        typer.Option(
            help="Name of the camera in that calibration; with its source, such as front=/dev/video0, "
            "the arm is driven through the poses and photographed."
        ),
    ] = "front",
    follower: FollowerName = "umirobot",
    port: Port = "auto",
    size: CameraSize = None,
    rate: CameraRate = None,
    input_format: CameraFormat = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the arm moves.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the joints' zero and the camera's place from pictures of a card on the gripper and one on the table.

    Without pictures and camera the simulator takes them, of an arm with known errors, and tells how far off the model
    is before and after.

    [bold]Examples[/bold]

    fw robot calibrate-camera

    fw robot calibrate-camera --pictures photos --fovy 43.3 --save umirobot

    fw robot calibrate-camera --camera front=/dev/video0 --port auto --fovy 43.3 --save umirobot
    """
    from featherweight.robot.camera.calibrate import calibrate_camera as calibrate
    from featherweight.robot.camera.view import CameraView

    told: dict[str, Any] = {}
    is_real = pictures is not None
    if is_source(camera):
        wishes, is_real = CameraWishes([camera], size, rate, input_format), True
        if pictures is not None:
            check_new(pictures)  # said before the arm moves
        camera, angles, found = _photograph(follower, port, wishes, poses, seed, yes)
        if pictures is not None:
            write_pictures(pictures, angles, found)
        result = calibrate(angles, found, fovy)
    elif pictures is not None:
        angles, found = read_pictures(pictures)
        result = calibrate(angles, found, fovy)
    else:
        result, told = _simulate(read_offsets("calibrate-camera", offsets), poses, seed)
    told |= {
        "zero_offset_deg": list(result.zero_offset_deg),
        "deviation_deg": list(result.deviation_deg),
        "camera_m": result.camera_m.tolist(),
        "error_px": result.error_px,
        "pictures": result.pictures,
        "dots": result.dots,
    }
    if save is not None:
        view = CameraView.of(result.pose.tolist(), fovy if is_real else 42.0)
        told["saved"] = str(_save(save, result.zero_offset_deg, camera, view))
    if as_json:
        print_json(told)
        return
    for name, value in told.items():
        shown = [round(one, 4) for one in value] if isinstance(value, list) else value
        print(f"{name}: {shown:.3f}" if isinstance(shown, float) else f"{name}: {shown}")


def _simulate(wrong_deg: list[float], poses: int, seed: int) -> "tuple[CameraCalibration, dict[str, Any]]":
    """Calibrate a simulated arm with known errors; return what was found, and how far off the model is."""
    from featherweight.robot.camera.calibrate import calibrate_camera as calibrate
    from featherweight.robot.sim.photographs import calibration_poses, model_errors_m, take_pictures
    from featherweight.robot.sim.world import World

    world, chosen = World("empty", zero_offset_deg=wrong_deg, cards=True), calibration_poses(poses, seed)
    result, told = calibrate(list(chosen), take_pictures(world, chosen), 42.0), dict[str, Any]()
    others = calibration_poses(50, seed + 1)
    for name, zeros in (("before", [0.0] * 5), ("after", list(result.zero_offset_deg))):
        errors = 1000 * model_errors_m(world, others, zeros)
        told |= {f"{name}_mean_mm": float(errors.mean()), f"{name}_max_mm": float(errors.max())}
    return result, told


def is_source(camera: str) -> bool:
    """Return whether the word names where pictures come from, and not only a camera."""
    return not camera.isidentifier() or camera == "test"


def _photograph(
    follower: str, port: str, wishes: CameraWishes, poses: int, seed: int, yes: bool
) -> "tuple[str, list[list[float]], list[np.ndarray]]":
    """Drive an arm through poses and photograph it; return the camera's name, angles and pictures."""
    from rich.progress import Progress

    from featherweight.robot.photograph import SPEED_DEG_S, photograph
    from featherweight.robot.sim.photographs import calibration_poses

    robot = make_follower(follower, port, wishes)
    (name,) = (key for key, shape in robot.observation_features.items() if isinstance(shape, tuple))
    if not yes:
        question = f"The arm moves through {poses} poses, {SPEED_DEG_S:g} degrees a second. Is its space free?"
        typer.confirm(question, abort=True, err=True)
    with robot, Progress(transient=True) as bar:
        shown = bar.add_task("photographing", total=poses)
        chosen = calibration_poses(poses, seed)
        angles, pictures = photograph(robot, name, chosen, lambda _: bar.advance(shown))
    return name, angles, pictures


def check_new(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ConfigError: if it does.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"calibrate-camera: pictures={folder} holds files; expected a new folder. Choose another.")


def write_pictures(folder: Path, angles: "list[list[float]]", pictures: "list[np.ndarray]") -> None:
    """Write what `read_pictures` reads, into a new folder."""
    from PIL import Image

    check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (pose, picture) in enumerate(zip(angles, pictures, strict=True)):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
        lines.append(",".join([f"{number:03d}.png", *(f"{angle:g}" for angle in pose)]))
    (folder / "angles.csv").write_text("\n".join(lines) + "\n")


def read_pictures(folder: Path) -> "tuple[list[list[float]], list[np.ndarray]]":
    """Return the angles and pictures of a folder.

    Raises:
        ConfigError: if angles.csv or a picture cannot be read.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    table = folder / "angles.csv"
    angles, pictures = [], []
    try:
        with table.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
        for row in rows:
            numbers = [float(word) for word in row[1:]]
            if len(numbers) not in (5, 6):
                raise ValueError(f"{row[0]} has {len(numbers)} angles")
            angles.append(numbers[:5])
            pictures.append(np.asarray(Image.open(folder / row[0]).convert("RGB")))
        if len({picture.shape for picture in pictures}) > 1:
            raise ValueError("the pictures have several sizes")
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise ConfigError(
            f"calibrate-camera: file={table} cannot be used ({error}); expected lines such as one.png,10,20,-30,0,-40 "
            "and pictures of one camera. Correct them."
        ) from error
    return angles, pictures


def _save(id: str, found_deg: tuple[float, ...], camera: str, view: "CameraView") -> Path:
    """Add what was found to the offsets of a kit's calibration, which the reported angles had in them already."""
    from featherweight.robot.calibration_file import KitCalibration, load_calibration

    calibration = load_calibration(id) or KitCalibration(id=id)
    offsets = [old + new for old, new in zip(calibration.zero_offset_deg, [*found_deg, 0.0], strict=True)]
    cameras = {**calibration.cameras, camera: view}
    return calibration.model_copy(update={"zero_offset_deg": offsets, "cameras": cameras}).save()
