"""Options of a drawn world, and the camera and laser on its car: those of nuScenes.

Source: the calibration of nuScenes' front camera and top laser.
"""

import numpy as np
from pydantic import Field

from featherweight.bev.geometry import pose, resize_intrinsics
from featherweight.config import Config

FULL_SIZE = (1600, 900)
INTRINSICS = np.array(
    [[1266.417203046554, 0, 816.2670197447984], [0, 1266.417203046554, 491.50706579294757], [0, 0, 1]]
)
CAMERA_ROTATION = (0.4998015430569128, -0.5030316162024876, 0.4997798114386805, -0.49737083824542755)
CAMERA_TRANSLATION = (1.70079118954, 0.0159456324149, 1.51095763913)
LIDAR_ROTATION = (0.7071067811865476, 0.0, 0.0, -0.7071067811865476)
LIDAR_TRANSLATION = (0.94, 0.0, 1.84)


class WorldConfig(Config):
    """Options of a drawn world."""

    scenes: int = Field(default=10, ge=1, le=200)
    """Drives; the first ten bear the names of nuScenes' small download, so that published splits apply."""
    frames: int = Field(default=40, ge=2, le=40)
    """Key frames of a drive, two a second."""
    seed: int = Field(default=0, ge=0)
    """Decides everything."""
    image_width: int = Field(default=480, ge=64)
    """Pixels; the intrinsics follow."""
    image_height: int = Field(default=272, ge=36)
    """Pixels."""
    pitch_jitter_deg: float = Field(default=0.0, ge=0, le=5)
    """Standard deviation of the camera's true pitch (half of it of its roll) that no table tells, as on a real car."""
    camera_height: float = Field(default=CAMERA_TRANSLATION[2], gt=0.1, lt=5)
    """Of the camera above the ground, m."""
    focal_length: float = Field(default=INTRINSICS[0, 0], gt=100)
    """In pixels of a picture 1600 wide."""


def intrinsics_of(config: WorldConfig) -> np.ndarray:
    """Return K of the pictures of a world."""
    full = INTRINSICS.copy()
    full[0, 0] = full[1, 1] = config.focal_length
    return resize_intrinsics(full, config.image_width / FULL_SIZE[0], config.image_height / FULL_SIZE[1])


def camera_pose(config: WorldConfig) -> np.ndarray:
    """Return the camera's pose on the car, as the tables tell it."""
    return pose(CAMERA_ROTATION, (*CAMERA_TRANSLATION[:2], config.camera_height))
