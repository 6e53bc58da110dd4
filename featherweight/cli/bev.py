"""`fw bev`: draw a world, train a map of the ground from one camera, judge it, show it, take it along."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli.screen import AsJson, Overrides, RecipeFile, Resume
from featherweight.cli.train import train as run_train
from featherweight.errors import ConfigError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Maps of the ground from one camera.")

Checkpoint = Annotated[Path, typer.Argument(help="Folder of a run, or of its model.", show_default=False)]
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
def labels(
    folder: Annotated[Path, typer.Argument(help="Folder in nuScenes' format.", show_default=False)],
    mode: Annotated[str, typer.Option(help="exact, or pon as published labels.")] = "exact",
    frame: Annotated[int, typer.Option(min=0, help="Number of the frame.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture.")] = Path("labels.png"),
) -> None:
    """Draw the labels of a frame beside its picture, and print how frequent each class is in them."""
    from featherweight.bev.data.nuscenes import NuScenesIndex
    from featherweight.bev.grid import BEVGridConfig
    from featherweight.bev.image_processing_focusbev import read_image
    from featherweight.bev.labels import make_labels
    from featherweight.bev.pictures import Panel, class_colors, hatch, legend, map_picture, overlay, sheet

    if mode not in ("exact", "pon"):
        raise ConfigError(f"fw bev labels: mode='{mode}' is unknown; expected exact or pon. Choose one.")
    index = NuScenesIndex(folder)
    if frame >= len(index.frames):
        raise ConfigError(f"fw bev labels: frame={frame} of {len(index.frames)}; expected a smaller number. Lower it.")
    chosen, grid = index.frames[frame], BEVGridConfig(anchor="center" if mode == "exact" else "corner")
    masks, seen = index.classes.split_bits(make_labels(index, chosen, grid, mode))  # type: ignore[arg-type]
    picture = read_image(chosen.image).convert("RGB")
    laid_over = overlay(picture, masks & seen, index.classes.names, grid, chosen.intrinsics, chosen.camera_to_ego)
    ground = map_picture(hatch(class_colors(masks, index.classes.names), seen), grid)
    panels = [Panel("Camera, labels laid over", laid_over), Panel(f"Labels ({mode})", ground)]
    shown = [name for name, mask in zip(index.classes.names, masks, strict=True) if (mask & seen).any()]
    sheet(panels, legend(shown, sheet(panels).width)).save(out)
    for name, mask in zip(index.classes.names, masks, strict=True):
        print(f"{name:22s} {100 * (mask & seen).sum() / max(1, seen.sum()):7.3f} % of seen cells")
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
    from featherweight.bev.evaluation import evaluate as judge

    if data is None:
        raise ConfigError("fw bev eval: data=None; expected --data with a folder in nuScenes' format. Name it.")
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
    from featherweight.bev.prediction import segment

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
