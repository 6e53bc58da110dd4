"""Cards with four dots of strong colours that nothing else has, found by their hue to a part of a pixel.

One card is glued to the gripper, one lies on the table at a known place. Any colour printer makes them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import MissingExtraError
from featherweight.robot.kinematics.dh import Array

DOT_M, SPACING_M, CARD_M = 0.0045, 0.018, 0.032
"""Radius of a dot, distance of neighbouring dots, and side of a card."""
HUE_TOLERANCE, LEAST_SATURATION, LEAST_VALUE = 0.028, 0.6, 0.2
"""How far a pixel's hue (0 to 1) may be from the dot's, and how colourful and bright it has to be."""
LEAST_PX, LARGEST_SHARE = 12, 0.5
"""Pixels of a dot below which it is not trusted, and the share of them that a second spot of its hue may have."""


Values = NDArray[np.float32]


@dataclass(frozen=True)
class Card:
    """Where a card is in the frame that it is fixed to.

    Args:
        center_m: (3,) of the card.
        right: (3,) unit vector along its rows, seen from the front.
        up: (3,) unit vector along its columns.
        hues: of its dots.
    """

    center_m: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    hues: tuple[float, float, float, float]

    @property
    def normal(self) -> Array:
        """(3,) unit vector out of its face."""
        return np.cross(self.right, self.up)

    @property
    def dots_m(self) -> Array:
        """(4, 3) centres of the dots: lower left, lower right, upper right, upper left."""
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * SPACING_M / 2
        result: Array = np.array(self.center_m) + corners @ np.array([self.right, self.up])
        return result


GRIPPER_CARD = Card(
    (0.024, -0.048, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (300 / 360, 120 / 360, 60 / 360, 180 / 360)
)
"""Magenta, green, yellow, cyan; in frame 5, on the side of the gripper that looks away from the base."""
TABLE_CARD = Card((0.20, -0.13, 0.0012), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 1 / 12, 2 / 3, 3 / 4))
"""Red, orange, blue, violet; in the world: 200 mm before the base's axis, 130 mm to its right, face up."""


def find_dots(picture: NDArray[np.uint8], *cards: Card) -> Array:
    """Return (cards, 4, 2) pixels x, y of the dots of cards; NaN where one is hidden, cut off or not unique.

    A dot's place is the mean of its pixels, weighted by how colourful they are, so that pixels at its edge count less.

    Args:
        picture: (H, W, 3).
        cards: what is looked for.
    """
    hue, saturation, value = _hue_saturation_value(picture)
    result = np.full((4 * len(cards), 2), np.nan)
    for number, wanted in enumerate(hue for card in cards for hue in card.hues):
        apart = np.abs((hue - wanted + 0.5) % 1 - 0.5)
        is_core = (apart < HUE_TOLERANCE) & (saturation > LEAST_SATURATION) & (value > LEAST_VALUE)
        box = _largest_spot(is_core)
        if box is not None:
            rows, columns = box
            # One pixel more on each side: there the dot covers pixels in part.
            y, x = np.mgrid[rows.start - 1 : rows.stop + 1, columns.start - 1 : columns.stop + 1]
            weight = (apart[y, x] < 2 * HUE_TOLERANCE) * saturation[y, x] * (value[y, x] > LEAST_VALUE)
            result[number] = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    return result.reshape(len(cards), 4, 2)


def _largest_spot(mask: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Return rows and columns of the largest connected spot; None if it is small, at the border, or one of several."""
    ndimage = _import_ndimage()
    labels, count = ndimage.label(mask)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    order = np.argsort(sizes)[::-1]
    rows, columns = ndimage.find_objects(labels)[order[0]]
    height, width = mask.shape
    is_inside = rows.start > 0 and columns.start > 0 and rows.stop < height and columns.stop < width
    is_alone = len(sizes) < 2 or sizes[order[1]] < LARGEST_SHARE * sizes[order[0]]
    return (rows, columns) if sizes[order[0]] >= LEAST_PX and is_inside and is_alone else None


def _import_ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=scipy is not installed; expected it for pictures of cards. Run pip install "
            "featherweight[robot]."
        ) from error
    return ndimage


def _hue_saturation_value(picture: NDArray[np.uint8]) -> tuple[Values, Values, Values]:
    """Return (H, W) hue, saturation and value, each from 0 to 1."""
    rgb = picture.astype(np.float32) / np.float32(255)
    value, spread = rgb.max(axis=-1), np.ptp(rgb, axis=-1)
    safe = np.where(spread == 0, 1, spread)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    after_green = np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sixth = np.where(value == red, (green - blue) / safe % 6, after_green)
    return sixth / 6 % 1, spread / np.maximum(value, 1e-9), value
