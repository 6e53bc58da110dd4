"""`fw bev`: draw a world, train a map of the ground from one camera, judge it, show it, take it along."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli.screen import AsJson, Overrides, RecipeFile, Resume
from featherweight.cli.train import train as run_train
from featherweight.errors import ConfigError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Maps of the ground from one camera.")


def _require_network(checkpoint: Path) -> Path:
    """Return what was given if a trained network lies there; asked before torch is imported."""
    from featherweight.bev.checkpoint_folder import network_folder

    network_folder(checkpoint)
    return checkpoint


Checkpoint = Annotated[
    Path,
    typer.Argument(help="Folder of a run, or of its model.", show_default=False, callback=_require_network),
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder in nuScenes' format.", show_default=False)]
Intrinsics = Annotated[
    Path | None, typer.Option("--intrinsics", help='JSON with the camera\'s matrix: {"K": 3 x 3}.', show_default=False)
]


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="New folder.", show_default=False)],
    scenes: Annotated[int, typer.Option(min=1, help="Drives.")] = 10,
    frames: Annotated[int, typer.Option(min=2, max=40, help="Key frames of a drive, two a second.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Decides everything.")] = 0,
    image_size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "480x272",
    pitch_jitter_deg: Annotated[float, typer.Option(min=0, help="Hidden jitter of the camera's pitch.")] = 0.0,
) -> None:
    """Draw a world in nuScenes' format: streets, traffic, camera, laser. No download, no GPU.

    [bold]Example[/bold]

    fw bev synth data/world --scenes 10 --seed 0
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from featherweight.bev.synthetic.rig import WorldConfig
    from featherweight.bev.synthetic.world import write_world

    width, _, height = image_size.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"fw bev synth: image_size='{image_size}' is no size; expected such as 480x272. Correct it.")
    options = {
        "scenes": scenes,
        "frames": frames,
        "seed": seed,
        "image_width": int(width),
        "image_height": int(height),
        "pitch_jitter_deg": pitch_jitter_deg,
    }
    console = Console()
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task("drawing", total=None)
        write_world(
            folder,
            WorldConfig.parse(options),
            progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    print(folder)


@app.command()
def train(
    recipe: RecipeFile,
    changes: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder.", show_default=False)] = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train as `fw train` does.

    [bold]Example[/bold]

    fw bev train examples/recipes/bev.yaml task.data=data/world --out runs/bev
    """
    run_train(recipe, changes, out, resume, as_json=as_json)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="Folder of a data set.", show_default=False)],
    version: Annotated[str | None, typer.Option(help="Of nuScenes: the folder of tables.", show_default=False)] = None,
) -> None:
    """Read a data set once, keep its index for later, and print what it holds."""
    from featherweight.bev.data.sources import open_source

    source = open_source(folder, version)
    drives = {frame.sequence for frame in source.frames}
    print(f"{len(source.frames)} frames in {len(drives)} drives, classes {source.classes.name}")
    for split in source.splits:
        counts = [len(drives & set(source.sequences(split, part))) for part in ("train", "val")]
        print(f"split {split}: {counts[0]} drives train, {counts[1]} judge")


@app.command()
def labels(
    data: Annotated[Path, typer.Argument(help="Folder of a data set, or a picture of label bits.", show_default=False)],
    mode: Annotated[str, typer.Option(help="exact, or pon as published labels.")] = "exact",
    frame: Annotated[int, typer.Option(min=0, help="Number of the frame.")] = 0,
    priors: Annotated[
        Path | None,
        typer.Option(help="Write how frequent each class is in 200 training frames as JSON.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture.")] = Path("labels.png"),
) -> None:
    """Draw the labels of a frame (or of a file), and count how frequent each class is in them.

    [bold]Example[/bold]

    fw bev labels data/world --frame 7 --priors priors.json
    """
    from featherweight.bev.data.classes import NUSCENES
    from featherweight.bev.data.sources import open_source
    from featherweight.bev.label_picture import class_shares, draw_file, draw_frame
    from featherweight.bev.pictures import check_picture_path
    from featherweight.config.files import write_atomically

    if mode not in ("exact", "pon"):
        raise ConfigError(f"fw bev labels: mode='{mode}' is unknown; expected exact or pon. Choose one.")
    check_picture_path(out, where="fw bev labels")
    if data.is_file():
        draw_file(data, NUSCENES).save(out)
        print(out)
        return
    source = open_source(data)
    if frame >= len(source.frames):
        raise ConfigError(f"fw bev labels: frame={frame} of {len(source.frames)}; expected a smaller number. Lower it.")
    draw_frame(source, source.frames[frame], mode).save(out)  # type: ignore[arg-type]
    chosen = [source.frames[frame]]
    if priors is not None:
        wanted = set(source.sequences(source.splits[0], "train"))
        trained = [one for one in source.frames if one.sequence in wanted]
        chosen = trained[:: max(1, len(trained) // 200)]
    shares = class_shares(source, chosen, mode)  # type: ignore[arg-type]
    for name, share in shares.items():
        print(f"{name:22s} {100 * share:7.3f} % of seen cells")
    if priors is not None:
        write_atomically(priors, json.dumps(shares, indent=2))
        print(f"{priors}: give its numbers as task.model.priors")
    print(out)


@app.command("eval")
def evaluate(
    checkpoint: Checkpoint,
    data: Data = None,
    split: Annotated[
        str | None, typer.Option(help="Of nuScenes: pon or official; default: pon.", show_default=False)
    ] = None,
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="Judge on drives that trained it; says so.")] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Also by visibility, weather and threshold, and calibration.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge a network on the drives that its split keeps for this: mIoU with its protocol; refuses leaking splits."""
    if data is None:
        raise ConfigError("fw bev eval: data=None; expected --data with a folder in nuScenes' format. Name it.")
    from featherweight.bev.data.sources import kind_of

    kind_of(data)
    from featherweight.bev.evaluation import evaluate as judge

    result = judge(checkpoint, data, split=split, allow_leak=allow_leak, details=details)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    result.print()


@app.command()
def predict(
    checkpoint: Checkpoint,
    image: Annotated[Path, typer.Argument(help="Picture.", show_default=False)],
    intrinsics: Intrinsics = None,
    hfov: Annotated[float | None, typer.Option(help="Horizontal field of view, degrees.", show_default=False)] = None,
    camera_height: Annotated[float | None, typer.Option(help="Above the ground, m.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture.")] = Path("map.png"),
) -> None:
    """Draw the map before one picture of any calibrated camera."""
    from featherweight.bev.pictures import check_picture_path
    from featherweight.bev.prediction import segment

    check_picture_path(out, where="fw bev predict")
    found = segment(image, checkpoint, intrinsics=intrinsics, hfov_deg=hfov, camera_height=camera_height)
    found.picture.save(out)
    for name, mask in zip(found.names, found.masks, strict=True):
        if (mask & found.in_view).any():
            print(f"{name:22s} {(mask & found.in_view).sum() * found.grid.resolution**2:8.1f} m2")
    print(out)


@app.command()
def video(
    checkpoint: Checkpoint,
    frames: Annotated[Path, typer.Argument(help="Folder of pictures, in order of their names.", show_default=False)],
    poses: Annotated[
        Path | None,
        typer.Option(help='JSON lines {"t": s, "x": m, "y": m, "yaw": rad}, one a picture.', show_default=False),
    ] = None,
    intrinsics: Intrinsics = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="GIF, or MP4 with imageio-ffmpeg.")] = Path("drive.gif"),
) -> None:
    """Draw a drive: camera, map of each frame, and with poses the map of all frames together."""
    from featherweight.bev.video import draw_video

    print(draw_video(checkpoint, frames, out, intrinsics=intrinsics, poses=poses))


@app.command("export")
def export_model(
    checkpoint: Checkpoint,
    file_format: Annotated[str, typer.Option("--format", help="onnx or pt2.")] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file.", show_default=False)] = None,
) -> None:
    """Write the network as ONNX or torch.export file, compared with the network before it is kept."""
    from featherweight.bev.export import export, input_names
    from featherweight.bev.prediction import load

    model, _ = load(checkpoint)
    target = out or Path(f"focusbev.{file_format}")
    export(model, target, file_format)  # type: ignore[arg-type]
    print(f"inputs: {', '.join(input_names(model))}")
    print(target)


@app.command()
def info(checkpoint: Checkpoint) -> None:
    """Print the options of a network and the protocol of its training."""
    from featherweight.bev.prediction import load

    model, _ = load(checkpoint)
    kept: dict[str, Any] = model.config.to_diff_dict()
    kept["trained_sequences"] = f"{len(model.config.trained_sequences)} drives"
    kept["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    for name in ("id2label", "label2id", "architectures", "transformers_version"):
        kept.pop(name, None)
    print(json.dumps(kept, indent=2))
