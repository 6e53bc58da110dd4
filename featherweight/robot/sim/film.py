"""Moving pictures of the simulator."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.robot.sim.cameras import Picture


def write_gif(path: str | Path, pictures: Sequence[Picture], fps: float = 10.0, colors: int = 128) -> Path:
    """Write pictures as a GIF of few colours, whose pauses are merged.

    Args:
        path: of the file.
        pictures: (H, W, 3) uint8 each.
        fps: pictures a second.
        colors: of the palette.
    Raises:
        ConfigError: if there are no pictures.
        MissingExtraError: if pillow is not installed.
    """
    if not pictures:
        raise ConfigError(f"write_gif: path={path} would hold no pictures; expected at least one. Record for longer.")
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=pillow is not installed; expected it for pictures. Run pip install featherweight[robot]."
        ) from error
    # One palette for all pictures, from a sample of them; the method that keeps small areas of strong colour.
    sample = np.concatenate([pictures[i * len(pictures) // 5] for i in range(5)])
    palette = Image.fromarray(sample).quantize(colors, Image.Quantize.MAXCOVERAGE)
    # Without dithering, what stands still stays equal from picture to picture and costs no bytes.
    frames = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, optimize=False)
    return Path(path)
