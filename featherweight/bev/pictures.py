"""Pictures of the ground: camera with its classes laid over, prediction, truth, errors, on one sheet; Pillow alone.

Far is up. Cells that nobody saw are hatched; ticks are metres. Colours: Okabe and Ito's, and tints of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from featherweight.bev.grid import BEVGridConfig
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

PAPER, INK, GRID_LINE = (255, 255, 255), (31, 35, 40), (200, 205, 212)
COLORS: dict[str, tuple[int, int, int]] = {
    "drivable_area": (176, 182, 190),
    "ped_crossing": (240, 228, 66),
    "walkway": (204, 121, 167),
    "carpark": (148, 130, 184),
    "car": (0, 114, 178),
    "truck": (213, 94, 0),
    "bus": (230, 159, 0),
    "trailer": (140, 86, 20),
    "construction_vehicle": (110, 110, 20),
    "pedestrian": (220, 40, 40),
    "motorcycle": (0, 158, 115),
    "bicycle": (86, 180, 233),
    "traffic_cone": (255, 127, 14),
    "barrier": (90, 60, 60),
    "vehicle": (0, 114, 178),
    "large_vehicle": (213, 94, 0),
    "construction": (255, 127, 14),
}
NOTHING = (238, 240, 238)
"""Ground without a class."""
RIGHT, MISSED, FALSE = (210, 214, 220), (0, 114, 178), (213, 94, 0)
"""Of the picture of errors: agreed, in the truth alone, in the prediction alone."""
ERROR_LEGEND = {"right": RIGHT, "missed": MISSED, "false": FALSE}
UNSEEN = "not seen"
_MARGIN = 34
_PX_PER_M = 8


@dataclass(frozen=True)
class Panel:
    """A picture with its title."""

    title: str
    image: "Image"
    colors: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Words with their colours that stand beside the title: what the legend of classes does not say."""


def class_colors(masks: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return (rows, columns, 3) uint8 colours of (K, rows, columns) masks; later classes lie over earlier ones."""
    colors = np.empty((*masks.shape[1:], 3), np.uint8)
    colors[:] = NOTHING
    for mask, name in zip(masks, names, strict=True):
        colors[mask] = COLORS[name]
    return colors


def hatch(colors: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return colours (rows, columns, 3) with cells that were not seen paled and hatched."""
    row, column = np.indices(seen.shape)
    paled = (0.25 * colors + 0.75 * np.array(PAPER)).astype(np.uint8)
    paled[(row + column) % 6 == 0] = GRID_LINE
    return np.where(seen[..., None], colors, paled)


def error_colors(predicted: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return colours of (K, rows, columns) masks: where any class is missed, where one is false, where all agree.

    Cells that were not seen count neither way, so that they are hatched alone.
    """
    colors = np.empty((*seen.shape, 3), np.uint8)
    colors[:] = RIGHT
    colors[(truth & ~predicted).any(axis=0) & seen] = MISSED
    colors[(predicted & ~truth).any(axis=0) & seen] = FALSE
    return hatch(colors, seen)


def map_picture(colors: np.ndarray, grid: BEVGridConfig, camera_z: float = 0.0) -> "Image":
    """Return a picture of (rows, columns, 3) cells with ticks in metres from the camera, and its place; far is up.

    Args:
        colors: of the cells.
        grid: the cells.
        camera_z: where the camera stands in the grid's depth; below its first row it looks up from there.
    """
    from PIL import Image, ImageDraw

    is_wide = grid.z_max - grid.z_min > 60
    scale, step = max(1, round(grid.resolution * _PX_PER_M / (2 if is_wide else 1))), 20 if is_wide else 10
    cells = Image.fromarray(colors[::-1]).resize((grid.columns * scale, grid.rows * scale), Image.Resampling.NEAREST)
    width, height = cells.size
    sheet = Image.new("RGB", (width + _MARGIN + 8, height + _MARGIN), PAPER)
    sheet.paste(cells, (_MARGIN, 4))
    draw, font = ImageDraw.Draw(sheet), _font(11)
    for z in range(int(-(-(grid.z_min - camera_z) // step) * step), int(grid.z_max - camera_z) + 1, step):
        y = 4 + height - round((z + camera_z - grid.z_min) / grid.resolution * scale)
        draw.line([(_MARGIN - 4, y), (_MARGIN, y)], fill=INK)
        draw.text((_MARGIN - 7, y), f"{z}", fill=INK, font=font, anchor="rm")
    for x in range(int(grid.x_min // step * step), int(grid.x_max) + 1, step):
        if x >= grid.x_min:
            place = _MARGIN + round((x - grid.x_min) / grid.resolution * scale)
            draw.line([(place, height + 4), (place, height + 8)], fill=INK)
            draw.text((place, height + 10), f"{x}", fill=INK, font=font, anchor="ma")
    middle = _MARGIN + round(-grid.x_min / grid.resolution * scale)
    if camera_z < grid.z_min:
        bottom = height + 4
        draw.polygon([(middle - 6, bottom), (middle + 6, bottom), (middle, bottom - 13)], fill=INK, outline=PAPER)
    else:
        y = 4 + height - round((camera_z - grid.z_min) / grid.resolution * scale)
        draw.ellipse([middle - 6, y - 6, middle + 6, y + 6], fill=INK, outline=PAPER)
    draw.text((_MARGIN + width + 6, height + 20), "m", fill=INK, font=font, anchor="rm")
    return sheet


def overlay(
    image: "Image",
    masks: np.ndarray,
    names: Sequence[str],
    grid: BEVGridConfig,
    intrinsics: np.ndarray,
    camera_to_ego: np.ndarray,
    strength: float = 0.55,
) -> "Image":
    """Return the camera's picture with the ground's classes laid over it, by the ground plane.

    Args:
        image: RGB.
        masks: (K, rows, columns).
        names: of the classes.
        grid: of the masks.
        intrinsics: of this picture.
        camera_to_ego: 4 x 4.
        strength: of the colours, 0 to 1.
    """
    from PIL import Image

    u, v = np.meshgrid(np.arange(image.width) + 0.5, np.arange(image.height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T
    down = -(rays @ camera_to_ego[2, :3])
    depth = np.where(down > 1e-6, camera_to_ego[2, 3] / np.maximum(down, 1e-6), np.inf)
    lateral = np.where(np.isfinite(depth), rays[..., 0] * np.where(np.isfinite(depth), depth, 0), 0)
    cells = grid.index(np.stack([lateral, np.where(np.isfinite(depth), depth, -1)], axis=-1))
    column, row = np.round(cells).astype(np.int64).transpose(2, 0, 1)
    inside = (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
    row, column = np.where(inside, row, 0), np.where(inside, column, 0)
    colors = class_colors(masks, names)[row, column]
    covered = inside & np.any(masks, axis=0)[row, column]
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    pixels[covered] = (1 - strength) * pixels[covered] + strength * colors[covered]
    return Image.fromarray(pixels.round().astype(np.uint8))


def heat(image: "Image", values: np.ndarray) -> "Image":
    """Return a picture dimmed where `values` (h, w) from 0 to 1 are small: what the network looks away from."""
    from PIL import Image

    wide = Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    share = np.asarray(wide, dtype=np.float32)[..., None] / 255
    pixels = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * 0.35
    warm = np.array(COLORS["bus"], np.float32)
    mixed = (1 - share) * pixels + share * (0.55 * np.asarray(image.convert("RGB"), dtype=np.float32) + 0.45 * warm)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def legend(names: Sequence[str], width: int) -> "Image":
    """Return the names of classes with their colours, as many in a row as fit."""
    from PIL import Image, ImageDraw

    font = _font(12)
    entries = [(name.replace("_", " "), COLORS[name]) for name in names] + [(UNSEEN, GRID_LINE)]
    rows: list[list[tuple[str, tuple[int, int, int], int]]] = [[]]
    x = 8
    for text, color in entries:
        size = 26 + round(font.getlength(text)) + 10
        if x + size > width and rows[-1]:
            rows.append([])
            x = 8
        rows[-1].append((text, color, x))
        x += size
    sheet = Image.new("RGB", (width, 20 * len(rows) + 6), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        for text, color, left in row:
            box = [left, 6 + 20 * number, left + 14, 18 + 20 * number]
            draw.rectangle(box, fill=PAPER if text == UNSEEN else color)
            if text == UNSEEN:  # hatched, as on the map
                for shift in (0, 5, 10):
                    draw.line([(left + shift, box[1]), (left + 14, box[3] - shift)], fill=color, width=2)
                draw.line([(left, box[1] + 5), (left + 8, box[3])], fill=color, width=2)
            draw.rectangle(box, outline=INK)
            draw.text((left + 20, 12 + 20 * number), text, fill=INK, font=font, anchor="lm")
    return sheet


def stack(images: Sequence["Image"]) -> "Image":
    """Return pictures one below the other."""
    from PIL import Image

    result = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), PAPER)
    y = 0
    for image in images:
        result.paste(image, (0, y))
        y += image.height
    return result


def sheet(
    panels: Sequence[Panel], below: "Image | None" = None, height: int = 300, *, has_titles: bool = True
) -> "Image":
    """Return pictures side by side under their titles, scaled to one height."""
    from PIL import Image, ImageDraw

    scaled = [
        panel.image.resize((max(1, round(panel.image.width * height / panel.image.height)), height)) for panel in panels
    ]
    width = sum(image.width for image in scaled) + 10 * (len(panels) + 1)
    bottom = below.height if below is not None else 0
    top = 28 if has_titles else 0
    result = Image.new("RGB", (max(width, below.width if below is not None else 0), top + height + 6 + bottom), PAPER)
    draw, x, font = ImageDraw.Draw(result), 10, _font(14)
    for panel, image in zip(panels, scaled, strict=True):
        if has_titles:
            draw.text((x, 8), panel.title, fill=INK, font=font)
            place = x + round(font.getlength(panel.title)) + 12
            for word, color in panel.colors.items():
                draw.rectangle([place, 10, place + 12, 22], fill=color, outline=INK)
                draw.text((place + 17, 8), word, fill=INK, font=font)
                place += 17 + round(font.getlength(word)) + 10
        result.paste(image, (x, top))
        x += image.width + 10
    if below is not None:
        result.paste(below, (0, top + height + 4))
    return result


def check_picture_path(path: str | Path, *, where: str) -> Path:
    """Return a path that a picture can be written to, before anything is computed for it.

    Raises:
        ConfigError: if its suffix is none of a picture, or its folder does not exist.
    """
    from PIL import Image

    target = Path(path)
    if target.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(
            f"{where}: out='{path}' has no suffix of a picture; expected such as .png or .jpg. Change it."
        )
    if not target.parent.is_dir():
        raise ConfigError(
            f"{where}: out='{path}' lies in a folder that does not exist; expected an existing one. Make it first."
        )
    return target


def _font(size: int):  # type: ignore[no-untyped-def]
    from PIL import ImageFont

    return ImageFont.load_default(size)
