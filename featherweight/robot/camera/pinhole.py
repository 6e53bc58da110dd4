"""A camera without distortion: where it stands, and where points of the world appear in its picture.

Camera axes: x to the right, y down, z into the scene. Pixels: x to the right, y down, the centre of the first is 0, 0.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from featherweight.errors import ConfigError
from featherweight.robot.kinematics.dh import Array


@dataclass(frozen=True)
class Pinhole:
    """What turns directions into pixels.

    Args:
        width_px: of the picture.
        height_px: of the picture.
        fovy_deg: angle that the picture's height covers.
    """

    width_px: int
    height_px: int
    fovy_deg: float

    @property
    def focal_px(self) -> float:
        """Focal length."""
        return self.height_px / 2 / math.tan(math.radians(self.fovy_deg) / 2)

    @property
    def center_px(self) -> Array:
        """(2,) where the axis meets the picture."""
        return np.array([(self.width_px - 1) / 2, (self.height_px - 1) / 2])

    def project(self, points_m: ArrayLike, pose: Array) -> Array:
        """Return (..., 2) pixels of points.

        Args:
            points_m: (..., 3) in the world.
            pose: (4, 4) from the world to the camera.
        """
        seen = np.asarray(points_m) @ pose[:3, :3].T + pose[:3, 3]
        result: Array = self.focal_px * seen[..., :2] / seen[..., 2:] + self.center_px
        return result

    def find_pose(self, points_m: Array, pixels: Array) -> Array:
        """Return the (4, 4) pose from points and where they appear, by the direct linear transform; a start for more.

        Args:
            points_m: (n, 3), not all in one plane, at least 6.
            pixels: (n, 2).
        Raises:
            ConfigError: if they do not tell a pose.
        """
        if len(points_m) < 6:
            raise ConfigError(
                f"camera: points={len(points_m)} are too few to find the camera; expected at least 6. Take more "
                "pictures in which the cards are seen."
            )
        # In units of their spread about their middle, so that the equations are well conditioned.
        middle, spread = points_m.mean(axis=0), points_m.std()
        x, y = ((pixels - self.center_px) / self.focal_px).T
        point = np.concatenate([(points_m - middle) / spread, np.ones((len(points_m), 1))], axis=1)
        zero = np.zeros_like(point)
        rows = np.concatenate(
            [
                np.concatenate([point, zero, -x[:, None] * point], axis=1),
                np.concatenate([zero, point, -y[:, None] * point], axis=1),
            ]
        )
        _, singular, v = np.linalg.svd(rows, full_matrices=False)
        if singular[-2] < 1e-6 * singular[0]:
            raise ConfigError(
                "camera: points=all in one plane tell no pose; expected some above the others. Move the arm to poses "
                "that differ more."
            )
        matrix = v[-1].reshape(3, 4)
        u, scales, w = np.linalg.svd(matrix[:, :3])
        sign = np.sign(np.linalg.det(u @ w))
        pose = np.eye(4)
        pose[:3, :3] = sign * u @ w
        pose[:3, 3] = sign * matrix[:, 3] / scales.mean() * spread - pose[:3, :3] @ middle
        return pose


def rotation(vector: ArrayLike) -> Array:
    """Return the (3, 3) rotation about a (3,) vector by its length in radians (Rodrigues)."""
    v = np.asarray(vector, dtype=np.float64)
    angle = float(np.linalg.norm(v))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = v / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    result: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return result
