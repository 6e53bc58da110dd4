"""From a picture of any camera to the network's pixels, with the intrinsics changed alike; Pillow alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_base import ImageProcessingMixin

from featherweight.bev.geometry import check_intrinsics, crop_intrinsics, resize_intrinsics
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as trained backbones expect."""
_LARGEST_STRETCH = 1.03
"""Up to here a picture is stretched to the network's shape; beyond, it is scaled evenly and cut."""


class FocusBEVImageProcessor(ImageProcessingMixin):
    """Resizes (and cuts, at the top first: there is the sky), scales and normalises.

    Args:
        image_size: (height, width) of the network's input.
        mean: of each colour, from 0 to 1.
        std: alike.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (128, 224),
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = (image_size[0], image_size[1])
        self.mean, self.std = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

    def __call__(self, image: "Image", intrinsics: np.ndarray) -> dict[str, Tensor]:
        """Return `pixel_values` (1, 3, height, width) and `intrinsics` (1, 3, 3) of one picture."""
        pixels, matrix = self.fit(image, intrinsics)
        return {
            "pixel_values": self.normalize(torch.from_numpy(pixels)[None]),
            "intrinsics": torch.from_numpy(matrix).float()[None],
        }

    def fit(self, image: "Image", intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (3, height, width) uint8 pixels and their K.

        Args:
            image: of any size.
            intrinsics: K for this size.
        Raises:
            ShapeError: if K cannot belong to the picture.
        """
        matrix = check_intrinsics(intrinsics, *image.size, where="FocusBEVImageProcessor")
        height, width = self.image_size
        x_factor, y_factor = width / image.width, height / image.height
        if max(x_factor, y_factor) / min(x_factor, y_factor) > _LARGEST_STRETCH:
            x_factor = y_factor = max(x_factor, y_factor)
        size = round(image.width * x_factor), round(image.height * y_factor)
        matrix = resize_intrinsics(matrix, size[0] / image.width, size[1] / image.height)
        left, top = (size[0] - width) // 2, size[1] - height
        resized = to_rgb(image).resize(size, resample=2)  # bilinear
        pixels = np.asarray(resized)[top : top + height, left : left + width].transpose(2, 0, 1)
        return pixels.copy(), crop_intrinsics(matrix, left, top)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return float pixels (B, 3, height, width) of uint8 ones."""
        return normalized(pixels, self.mean, self.std)


def normalized(
    pixels: Tensor, mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD
) -> Tensor:
    """Return float pixels (..., 3, height, width) of uint8 ones: mean 0 and deviation 1 of each colour."""
    shift, scale = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels.float() / 255 - shift) / scale


def read_image(path: Path | str) -> "Image":
    """Return a picture from a file.

    Raises:
        ConfigError: if there is none or it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        reason = "is missing" if not Path(path).exists() else f"cannot be read as a picture ({error})"
        raise ConfigError(
            f"read_image: path='{path}' {reason}; expected a picture such as JPEG or PNG. Check the file."
        ) from error


def to_rgb(image: "Image") -> "Image":
    """Return a picture with three colours of 8 bits, whatever it had: grey, transparent, 16 bits."""
    from PIL import Image

    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.clip(values / 257 + 0.5, 0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
