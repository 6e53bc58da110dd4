"""From a folder of a trained network and one picture to a map."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from featherweight.bev.checkpoint_folder import network_folder
from featherweight.bev.geometry import (
    check_camera,
    check_intrinsics,
    in_view,
    intrinsics_of_field_of_view,
    resize_intrinsics,
)
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor, read_image, to_rgb
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.pictures import Panel, class_colors, hatch, heat, legend, map_picture, overlay, sheet
from featherweight.bev.streaming import StreamingSegmenter, level_camera
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

_FILM_WIDTH_MM = 36.0
"""To which the focal length "in 35 mm" of a picture's EXIF data belongs."""


@dataclass(frozen=True)
class GroundMap:
    """What a network says about the ground before one camera."""

    probabilities: np.ndarray
    """(K, rows, columns), row 0 nearest."""
    names: tuple[str, ...]
    grid: BEVGridConfig
    in_view: np.ndarray
    """(rows, columns) bool."""
    camera: "Image"
    """The picture with the ground's classes laid over it."""
    map: "Image"
    """The map with ticks in metres; cells out of view are hatched."""
    relevance: "Image | None" = None
    """What the network reads, where it tells."""

    @property
    def picture(self) -> "Image":
        """Everything on one sheet."""
        panels = [Panel("Camera, ground laid over", self.camera)]
        if self.relevance is not None:
            panels.append(Panel("What the network reads", self.relevance))
        panels.append(Panel("Map", self.map))
        shown = [name for name, mask in zip(self.names, self.masks, strict=True) if mask.any()]
        return sheet(panels, legend(shown, sheet(panels).width))

    @property
    def masks(self) -> np.ndarray:
        """(K, rows, columns) bool, probabilities above one half."""
        return self.probabilities > 0.5


def load(checkpoint: str | Path) -> tuple[FocusBEVForSegmentation, FocusBEVImageProcessor]:
    """Return network and processor of a folder, of a run, or of its `model` folder.

    Raises:
        CheckpointError: if there is none.
    """
    folder = network_folder(checkpoint)
    model = FocusBEVForSegmentation.from_pretrained(folder)
    return model.eval(), FocusBEVImageProcessor.from_pretrained(folder)


def read_calibration(path: str | Path) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int] | None]:
    """Return K, camera_to_ego and image size of a file: {"K": 3 x 3, "camera_to_ego": 4 x 4, "image_size": [w, h]}.

    Raises:
        ConfigError: if it cannot be read or has no K.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        content = {"K": content} if isinstance(content, list) else content
        intrinsics = np.array(content["K"], dtype=np.float64).reshape(3, 3)
        pose = content.get("camera_to_ego")
        size = content.get("image_size")
        matrix = None if pose is None else np.array(pose, dtype=np.float64).reshape(4, 4)
        size = None if size is None else (int(size[0]), int(size[1]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            f"bev: intrinsics='{path}' cannot be read as a calibration ({type(error).__name__}: {error}); expected "
            "JSON "
            'such as {"K": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]}. Write the matrix of your camera there.'
        ) from error
    return intrinsics, None if matrix is None else check_camera(matrix, where=f"bev: '{path}'"), size


def guess_intrinsics(image: "Image") -> np.ndarray | None:
    """Return K from the focal length in a picture's EXIF data; None: it tells nothing."""
    focal = image.getexif().get_ifd(0x8769).get(41989)  # FocalLengthIn35mmFilm
    if not focal:
        return None
    return intrinsics_of_field_of_view(image.width, image.height, 2 * math.atan(_FILM_WIDTH_MM / 2 / float(focal)))


def segment(
    image: "str | Path | Image",
    checkpoint: str | Path,
    *,
    intrinsics: np.ndarray | str | Path | None = None,
    hfov_deg: float | None = None,
    camera_height: float | None = None,
) -> GroundMap:
    """Return the map before one picture of any calibrated camera.

    Args:
        image: picture or its file.
        checkpoint: folder of the network.
        intrinsics: K, or a file with it; None: from `hfov_deg`, or from the picture's EXIF data.
        hfov_deg: horizontal field of view in degrees, where no K is known.
        camera_height: m above the ground; None takes the calibration's, else the network's.
    Raises:
        ConfigError: if nothing tells the camera's intrinsics: no camera is ever assumed.
    """
    model, processor = load(checkpoint)
    picture = read_image(image) if isinstance(image, str | Path) else image
    matrix, pose = camera_of(picture, intrinsics, hfov_deg)
    pose = level_camera(model.config.camera_height) if pose is None else pose.copy()
    if camera_height is not None:
        pose[2, 3] = camera_height
    pose = check_camera(pose, where="bev")
    output = StreamingSegmenter(model, matrix, pose, processor).step(picture)
    assert output.logits is not None
    return ground_map(model, output.logits[0], output.relevance, picture, matrix, pose)


def camera_of(
    picture: "Image", intrinsics: np.ndarray | str | Path | None, hfov_deg: float | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return K for a picture, and the camera's pose where a calibration file tells it; see `segment`."""
    if intrinsics is None:
        matrix = (
            intrinsics_of_field_of_view(picture.width, picture.height, math.radians(hfov_deg))
            if hfov_deg is not None
            else guess_intrinsics(picture)
        )
        if matrix is None:
            raise ConfigError(
                "bev: intrinsics=None, and the picture tells no focal length; expected the camera's K. Give "
                "--intrinsics K.json, or --hfov with the horizontal field of view in degrees."
            )
        return matrix, None
    if isinstance(intrinsics, np.ndarray):
        return check_intrinsics(intrinsics, *picture.size, where="bev", warns=False), None
    matrix, pose, size = read_calibration(intrinsics)
    if size is not None and size != picture.size:
        factors = picture.width / size[0], picture.height / size[1]
        if abs(factors[0] / factors[1] - 1) > 0.02:
            raise ConfigError(
                f"bev: the picture has {picture.width} x {picture.height} pixels, the calibration {size[0]} x "
                f"{size[1]}: another shape; expected the same, or a picture scaled evenly. Calibrate for this shape, "
                "or do not crop."
            )
        matrix = resize_intrinsics(matrix, *factors)
    # The processor warns of a centre that is far off, once.
    return check_intrinsics(matrix, *picture.size, where=f"bev: '{intrinsics}'", warns=False), pose


def ground_map(
    model: FocusBEVForSegmentation,
    logits: torch.Tensor,
    relevance: torch.Tensor | None,
    picture: "Image",
    intrinsics: np.ndarray,
    camera_to_ego: np.ndarray,
) -> GroundMap:
    """Return probabilities with their picture, of (K, rows, columns) logits of one frame."""
    grid, names = model.config.bev_grid, tuple(model.config.id2label[k] for k in range(len(model.config.id2label)))
    probabilities = logits.float().sigmoid().cpu().numpy()
    masks, covered = probabilities > 0.5, in_view(grid, intrinsics, picture.width)
    camera = to_rgb(picture)
    return GroundMap(
        probabilities,
        names,
        grid,
        covered,
        camera=overlay(camera, masks, names, grid, intrinsics, camera_to_ego),
        map=map_picture(hatch(class_colors(masks, names), covered), grid),
        relevance=None if relevance is None else heat(camera, relevance[0, 0].sigmoid().cpu().numpy()),
    )
