"""A drive as a picture that moves: camera, map of each frame, and the map of all frames together."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featherweight.bev.accumulation import MapAccumulator
from featherweight.bev.data.folder import pictures_of, read_poses
from featherweight.bev.image_processing_focusbev import read_image, to_rgb
from featherweight.bev.pictures import (
    COLORS,
    INK,
    NOTHING,
    PAPER,
    Panel,
    class_colors,
    hatch,
    legend,
    map_picture,
    sheet,
)
from featherweight.bev.prediction import camera_of, ground_map, load
from featherweight.bev.streaming import StreamingSegmenter, level_camera
from featherweight.config.files import new_file
from featherweight.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

FRAME_MS = 250


def draw_video(
    checkpoint: str | Path,
    frames: str | Path,
    out: str | Path,
    *,
    intrinsics: str | Path | np.ndarray | None,
    poses: str | Path | None = None,
) -> Path:
    """Segment a folder of pictures in order and draw them.

    Args:
        checkpoint: folder of a run, or of its model.
        frames: folder of pictures; the order is that of their names.
        out: .gif, or .mp4 with imageio-ffmpeg.
        intrinsics: K, or a file with it.
        poses: file of JSON lines, one a picture, {"t", "x", "y", "yaw"} or {"t", "pose": 4 x 4}; None: single frames.
    Raises:
        ConfigError: if there are no pictures, or another number of poses.
    """
    target = Path(out)
    if target.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"bev video: out='{out}' has no known suffix; expected .gif or .mp4. Change it.")
    if not target.parent.is_dir():
        raise ConfigError(
            f"bev video: out='{out}' lies in a folder that does not exist; expected an existing one. Make it first."
        )
    files = pictures_of(Path(frames), where="bev video")
    places = read_poses(Path(poses), len(files)) if poses is not None else [(None, None)] * len(files)
    drawn = list(_draw(checkpoint, files, places, intrinsics))
    with new_file(target) as place:
        if target.suffix == ".gif":
            _write_gif(drawn, place)
        else:
            _write_mp4(drawn, place)
    return target


def _draw(
    checkpoint: str | Path,
    files: Sequence[Path],
    places: Sequence[tuple[float | None, np.ndarray | None]],
    intrinsics: str | Path | np.ndarray | None,
) -> Iterator["Image"]:
    model, processor = load(checkpoint)
    first = read_image(files[0])
    matrix, camera = camera_of(first, intrinsics)
    camera = camera if camera is not None else level_camera(model.config.camera_height)
    stream = StreamingSegmenter(model, matrix, camera, processor)
    accumulated = MapAccumulator(len(model.config.id2label), model.config.bev_grid)
    names = [model.config.id2label[k] for k in range(len(model.config.id2label))]
    below = legend(names, 1100)
    for path, (time, pose) in zip(files, places, strict=True):
        picture = to_rgb(read_image(path))
        output = stream.step(picture, pose=pose, timestamp=time)
        assert output.logits is not None
        found = ground_map(model, output.logits[0], None, picture, matrix, camera)
        panels = [Panel(path.stem[:40], found.camera), Panel("Map of this frame", found.map)]
        if pose is not None:
            accumulated.add(found.probabilities, found.in_view, pose @ camera)
            together, known, grid = accumulated.picture_around(pose @ camera)
            colors = hatch(class_colors(together, names), known)
            whole = map_picture(colors, grid, camera_z=(grid.z_min + grid.z_max) / 2)
            panels.append(Panel("Map of the drive, north up", whole))
        yield sheet(panels, below)


def _write_gif(images: Sequence["Image"], path: Path) -> None:
    from PIL import Image

    small = [image.resize((round(image.width * 0.75), round(image.height * 0.75))) for image in images]
    palette = _palette(small)
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in small]
    indexed[0].save(path, format="GIF", save_all=True, append_images=indexed[1:], duration=FRAME_MS, loop=0)


def _palette(images: Sequence["Image"]) -> "Image":
    """Return 256 colours: those of the classes as they are, so that maps keep their meaning, and frequent others."""
    from PIL import Image

    fixed = [*dict.fromkeys([*COLORS.values(), INK, NOTHING, PAPER])]
    sample = Image.new("RGB", (images[0].width, images[0].height * min(3, len(images))))
    for number in range(min(3, len(images))):
        sample.paste(images[number * (len(images) - 1) // 2], (0, number * images[0].height))
    others = sample.quantize(256 - len(fixed)).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(value for color in fixed for value in color), *others][:768])
    return palette


def _write_mp4(images: Sequence["Image"], path: Path) -> None:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingExtraError(
            "bev video: .mp4 needs imageio-ffmpeg; expected it to be installed. Run: pip install "
            "'featherweight[bev]', or write a .gif."
        ) from error
    size = images[0].width // 2 * 2, images[0].height // 2 * 2  # the coder takes even sizes alone
    writer = imageio_ffmpeg.write_frames(
        str(path), size, fps=1000 / FRAME_MS, macro_block_size=2, output_params=["-f", "mp4"]
    )
    writer.send(None)
    for image in images:
        writer.send(np.ascontiguousarray(np.asarray(image.crop((0, 0, *size)))))
    writer.close()
