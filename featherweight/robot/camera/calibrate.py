"""Find the joints' zero and the camera's place from pictures of a card on the gripper and one on the table.

Unknown are the offsets of the five joints and the camera's pose, eleven numbers; each dot that is seen gives two
equations. Gauss-Newton from the pose of the direct linear transform, with Huber's weights against wrong dots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ConfigError
from featherweight.robot.camera.fiducial import GRIPPER_CARD, TABLE_CARD, find_dots
from featherweight.robot.camera.pinhole import Pinhole, rotation
from featherweight.robot.kinematics.dh import BASE_HEIGHT_M, Array, frames
from featherweight.robot.kit import ARM_JOINTS

MIN_PICTURES = 8
HUBER_PX = 1.0
"""Error beyond which a dot counts less."""
ROUNDS, STEP = 30, 1e-6
LARGEST_ERROR_PX = 3.0
"""Above this, what was found is no calibration."""


@dataclass(frozen=True)
class CameraCalibration:
    """What was found."""

    zero_offset_deg: tuple[float, ...]
    """(5,) reported angle minus that of the joint; `KitCalibration.zero_offset_deg` of the arm's joints."""
    deviation_deg: tuple[float, ...]
    """(5,) how uncertain they are, one standard deviation."""
    pose: Array
    """(4, 4) from the world to the camera."""
    error_px: float
    """Root mean square over the dots."""
    pictures: int
    """Pictures in which the gripper's card was seen."""
    dots: int

    @property
    def camera_m(self) -> Array:
        """(3,) where the camera stands."""
        result: Array = -self.pose[:3, :3].T @ self.pose[:3, 3]
        return result


def gripper_dots(servos_deg: Array, zero_offset_deg: Array) -> Array:
    """Return (n, 4, 3) the dots on the gripper in the world.

    Args:
        servos_deg: (n, 5) reported angles.
        zero_offset_deg: (5,).
    """
    end = frames(np.radians(servos_deg - zero_offset_deg))[..., -1, :, :]
    dots = GRIPPER_CARD.dots_m @ np.swapaxes(end[..., :3, :3], -1, -2) + end[..., None, :3, 3]
    dots[..., 2] += BASE_HEIGHT_M
    result: Array = dots
    return result


def calibrate_camera(
    servos_deg: Sequence[Sequence[float]], pictures: Sequence[NDArray[np.uint8]], fovy_deg: float
) -> CameraCalibration:
    """Find zero offsets and the camera's pose.

    Args:
        servos_deg: (n, 5) or (n, 6) reported angles of the arm at rest; a sixth is left out.
        pictures: (H, W, 3) each, taken by one camera that stands still.
        fovy_deg: angle that the height of a picture covers.
    Raises:
        ConfigError: if there are too few pictures with the card, or nothing fits them.
    """
    angles = np.asarray(servos_deg, dtype=np.float64)[:, :ARM_JOINTS]
    found = [find_dots(picture, GRIPPER_CARD, TABLE_CARD) for picture in pictures]
    seen, on_table = np.moveaxis(np.array(found).reshape(-1, 2, 4, 2), 1, 0)
    used = ~np.isnan(seen).any(axis=(1, 2))
    if used.sum() < MIN_PICTURES:
        raise ConfigError(
            f"calibrate-camera: pictures={int(used.sum())} of {len(pictures)} show the card on the gripper; expected "
            f"at least {MIN_PICTURES}. Turn the card to the camera, and give it light."
        )
    height_px, width_px = pictures[0].shape[:2]
    return fit(angles[used], seen[used], on_table[used], Pinhole(width_px, height_px, fovy_deg))


def fit(servos_deg: Array, seen_px: Array, on_table_px: Array, camera: Pinhole) -> CameraCalibration:
    """Find the eleven numbers from dots; see `calibrate_camera`.

    Args:
        servos_deg: (n, 5).
        seen_px: (n, 4, 2) dots on the gripper.
        on_table_px: (n, 4, 2) dots on the table; NaN where they are hidden.
        camera: of the pictures.
    Raises:
        ConfigError: if nothing fits.
    """
    table = np.broadcast_to(TABLE_CARD.dots_m, (*on_table_px.shape[:2], 3))
    is_seen = ~np.isnan(np.concatenate([seen_px, on_table_px]).reshape(-1, 2)).any(axis=1)
    pixels = np.concatenate([seen_px, on_table_px]).reshape(-1, 2)[is_seen]

    def points(offsets_deg: Array) -> Array:
        both = np.concatenate([gripper_dots(servos_deg, offsets_deg), table])
        result: Array = both.reshape(-1, 3)[is_seen]
        return result

    pose = camera.find_pose(points(np.zeros(ARM_JOINTS)), pixels)

    def turned(change: Array) -> Array:
        result = np.eye(4)
        result[:3, :3], result[:3, 3] = rotation(change[:3]) @ pose[:3, :3], pose[:3, 3] + change[3:6]
        return result

    def errors(unknown: Array) -> Array:
        result: Array = (camera.project(points(unknown[6:]), turned(unknown[:6])) - pixels).reshape(-1)
        return result

    # Offsets in units of ten degrees, so that all eleven have one order of magnitude.
    scale = np.array([1.0] * 6 + [10.0] * ARM_JOINTS)
    unknown, damping = np.zeros(6 + ARM_JOINTS), 1e-3
    cost = _huber(errors(unknown * scale))
    for _ in range(ROUNDS):
        error = errors(unknown * scale)
        slopes = np.stack([(errors((unknown + step) * scale) - error) / STEP for step in STEP * np.eye(11)], axis=1)
        weight = np.minimum(1.0, HUBER_PX / np.maximum(np.abs(error), 1e-12))
        normal = slopes.T @ (weight[:, None] * slopes)
        change = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ (weight * error))
        better = _huber(errors((unknown + change) * scale))
        if better < cost:
            unknown, cost, damping = unknown + change, better, damping / 10
        else:
            damping *= 10
        if np.abs(change).max() < 1e-9 or damping > 1e9:
            break
    error = errors(unknown * scale)
    error_px = float(np.sqrt((error**2).mean()))
    if not error_px < LARGEST_ERROR_PX:
        raise ConfigError(
            f"calibrate-camera: error_px={error_px:.1f} is too large; expected below {LARGEST_ERROR_PX:g}. Check the "
            "camera's field of view, where the cards are, and that camera and table stood still."
        )
    covariance = np.linalg.inv(normal) * error_px**2
    deviation = np.sqrt(np.diag(covariance)) * scale
    found = unknown * scale
    return CameraCalibration(
        zero_offset_deg=tuple(map(float, found[6:])),
        deviation_deg=tuple(map(float, deviation[6:])),
        pose=turned(found[:6]),
        error_px=error_px,
        pictures=len(servos_deg),
        dots=len(pixels),
    )


def _huber(error: Array) -> float:
    size = np.abs(error)
    return float(np.where(size < HUBER_PX, 0.5 * size**2, HUBER_PX * (size - 0.5 * HUBER_PX)).sum())
