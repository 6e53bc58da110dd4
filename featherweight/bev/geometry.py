"""Cameras, poses and the ground: every change of frame in one place, in float64.

Frames: camera x right, y down, z forward; ego and world x forward, y left, z up. Quaternions are (w, x, y, z). A pose
`a_to_b` is the 4 x 4 matrix that takes points of a to b. Image coordinates are continuous: pixel (row i, column j)
covers [j, j + 1) x [i, i + 1). Intrinsics K are 3 x 3 with focal lengths that may differ.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from featherweight.bev.grid import BEVGridConfig, Plane
from featherweight.errors import ShapeError

_OFF_CENTRE = (0.1, 0.2)
"""Share of width and height by which an optical centre may lie off the middle; lenses are off by a twentieth."""


def rotation_matrix(quaternion: ArrayLike) -> np.ndarray:
    """Return the 3 x 3 rotation of a quaternion (w, x, y, z), which is normalised first.

    Raises:
        ShapeError: if there are not four finite numbers or all are zero.
    """
    q = np.asarray(quaternion, dtype=np.float64)
    length = np.linalg.norm(q) if q.shape == (4,) else math.nan
    if not (np.isfinite(length) and length > 0):
        raise ShapeError(
            f"rotation_matrix: quaternion={quaternion!r} is no rotation; expected four finite numbers (w, x, y, z) "
            "that are not all zero. Check the calibration or pose."
        )
    w, x, y, z = q / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of_yaw(yaw: float) -> np.ndarray:
    """Return the quaternion of a rotation about the vertical by `yaw` radians, to the left."""
    return np.array([math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)])


def pose(rotation: ArrayLike, translation: ArrayLike) -> np.ndarray:
    """Return the 4 x 4 pose of a quaternion (or 3 x 3 rotation) and a translation in m."""
    rotation = np.asarray(rotation, dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation if rotation.shape == (3, 3) else rotation_matrix(rotation)
    matrix[:3, 3] = translation
    return matrix


def planar_pose(x: float, y: float, yaw: float) -> np.ndarray:
    """Return the 4 x 4 pose of a body that drives on flat ground: metres, radians to the left."""
    return pose(quaternion_of_yaw(yaw), (x, y, 0.0))


def inverse_pose(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of a rigid 4 x 4 pose, exactly rigid again."""
    result = np.eye(4)
    result[:3, :3] = matrix[:3, :3].T
    result[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return result


def tilt(pitch: float, roll: float = 0.0) -> np.ndarray:
    """Return the 3 x 3 rotation of camera coordinates of a camera that looks `pitch` radians further down.

    Args:
        pitch: radians downward about the x axis of the camera.
        roll: radians clockwise, as seen from behind, about its z axis.
    Returns:
        R with p_new = R p_old: what was on the optical axis appears higher (smaller v) after a pitch down.
    """
    cp, sp, cr, sr = math.cos(pitch), math.sin(pitch), math.cos(roll), math.sin(roll)
    about_x = np.array([[1.0, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1.0]])
    return about_z @ about_x


def tilt_homography(intrinsics: np.ndarray, pitch: float, roll: float = 0.0) -> np.ndarray:
    """Return K R K^-1, which takes image points of a camera to those of the same camera after `tilt`."""
    return intrinsics @ tilt(pitch, roll) @ np.linalg.inv(intrinsics)


def resize_intrinsics(intrinsics: np.ndarray, x_factor: float, y_factor: float) -> np.ndarray:
    """Return K after the image was stretched by the two factors, which may differ."""
    return np.diag([x_factor, y_factor, 1.0]) @ intrinsics


def crop_intrinsics(intrinsics: np.ndarray, left: float, top: float) -> np.ndarray:
    """Return K after `left` columns and `top` rows of pixels were cut away."""
    result = np.array(intrinsics, dtype=np.float64)
    result[0, 2] -= left
    result[1, 2] -= top
    return result


def flip_intrinsics(intrinsics: np.ndarray, width: float) -> np.ndarray:
    """Return K of the mirrored image, whose camera sees the mirrored world (x -> -x)."""
    result = np.array(intrinsics, dtype=np.float64)
    result[0, 1] = -result[0, 1]
    result[0, 2] = width - result[0, 2]
    return result


def feature_intrinsics(intrinsics: np.ndarray, stride: float) -> np.ndarray:
    """Return K in units of a feature map of that stride; feature row i has its centre at v = i + 1/2."""
    return resize_intrinsics(intrinsics, 1 / stride, 1 / stride)


def intrinsics_of_field_of_view(width: int, height: int, horizontal_fov_rad: float) -> np.ndarray:
    """Return K of an ideal camera from its horizontal field of view.

    Raises:
        ShapeError: if no flat picture has such a field of view.
    """
    if not 0 < horizontal_fov_rad < math.pi:
        raise ShapeError(
            f"intrinsics_of_field_of_view: the field of view of {math.degrees(horizontal_fov_rad):g} degrees is "
            "impossible; expected more than 0 and less than 180. Look it up in the camera's data sheet."
        )
    focal = width / 2 / math.tan(horizontal_fov_rad / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def project(points: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Return image coordinates (u, v) of (..., 3) points of the camera frame; behind the camera they mean nothing."""
    image = points @ intrinsics.T
    return image[..., :2] / image[..., 2:]


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return (..., 3) points after a 4 x 4 pose."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def ground_matrix(camera_to_world: np.ndarray, plane: Plane = "camera") -> np.ndarray:
    """Return A: 3 x 3 with (X, Y, 1) of the world = A (x, z, 1) of the camera's ground.

    Args:
        camera_to_world: 4 x 4 pose.
        plane: "camera" drops the height and keeps the small shears of pitch and roll; "gravity" keeps the heading of
            the optical axis alone.
    """
    if plane == "camera":
        return camera_to_world[[0, 1, 3]][:, [0, 2, 3]]
    forward = camera_to_world[:2, 2] / np.linalg.norm(camera_to_world[:2, 2])
    right = np.array([forward[1], -forward[0]])
    matrix = np.eye(3)
    matrix[:2, 0], matrix[:2, 1], matrix[:2, 2] = right, forward, camera_to_world[:2, 3]
    return matrix


def ground_motion(past_to_world: np.ndarray, now_to_world: np.ndarray, plane: Plane = "camera") -> np.ndarray:
    """Return M: 3 x 3 with the ground point of a past camera = M (x, z, 1) of the present one.

    Args:
        past_to_world: pose of the past camera.
        now_to_world: pose of the present one; both may lie kilometres from the origin.
    """
    origin = now_to_world[:3, 3].copy()
    past, now = past_to_world.copy(), now_to_world.copy()
    past[:3, 3] -= origin
    now[:3, 3] -= origin
    return np.linalg.solve(ground_matrix(past, plane), ground_matrix(now, plane))


def integrate_odometry(speed: float, yaw_rate: float, seconds: float) -> np.ndarray:
    """Return the exact pose (4 x 4, new to old) of a body after `seconds` at constant speed and yaw rate.

    Args:
        speed: m/s forward.
        yaw_rate: rad/s to the left.
        seconds: duration.
    """
    angle = yaw_rate * seconds
    if abs(angle) < 1e-4:  # the series: the quotients below lose digits
        sine, versine = 1 - angle**2 / 6, angle / 2 - angle**3 / 24
    else:
        sine, versine = math.sin(angle) / angle, (1 - math.cos(angle)) / angle
    return planar_pose(speed * seconds * sine, speed * seconds * versine, angle)


def ground_row(depth: ArrayLike, intrinsics: np.ndarray, height: float, pitch: float = 0.0) -> np.ndarray:
    """Return the image row v where flat ground at horizontal distance `depth` is seen straight ahead.

    Args:
        depth: m, positive.
        intrinsics: K of the image.
        height: of the camera above the ground, m.
        pitch: radians downward.
    """
    angle = np.arctan(height / np.asarray(depth, dtype=np.float64)) - pitch
    return intrinsics[1, 2] + intrinsics[1, 1] * np.tan(angle)


def view_share(grid: BEVGridConfig, intrinsics: np.ndarray, width: int) -> float:
    """Return the share of a grid's cells that lie within the horizontal field of view."""
    return float(in_view(grid, intrinsics, width).mean())


def in_view(grid: BEVGridConfig, intrinsics: np.ndarray, width: int) -> np.ndarray:
    """Return which cells have their anchor in the horizontal field of view, 0 <= u < width; bool (rows, columns)."""
    u_HW = grid.laterals()[None] / grid.depths()[:, None] * intrinsics[0, 0] + intrinsics[0, 2]
    return (u_HW >= 0) & (u_HW < width)


def check_camera(camera_to_ego: ArrayLike, *, where: str) -> np.ndarray:
    """Return the pose of a camera on its carrier as float64 after looking whether it is one.

    Raises:
        ShapeError: if it is no rigid 4 x 4 pose, or the camera stands on or below the ground.
    """
    matrix = np.asarray(camera_to_ego, dtype=np.float64)
    turn = matrix[:3, :3] if matrix.shape == (4, 4) else np.full((3, 3), math.nan)
    is_rigid = np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) and np.linalg.det(turn) > 0
    if not (is_rigid and np.isfinite(matrix).all() and np.allclose(matrix[3], [0, 0, 0, 1])):
        raise ShapeError(
            f"{where}: camera_to_ego={matrix.tolist()} is no pose; expected 4 x 4 with a rotation (orthogonal, "
            "determinant 1), a translation in m and a last row of 0, 0, 0, 1. Check the calibration."
        )
    if matrix[2, 3] <= 0:
        raise ShapeError(
            f"{where}: the camera's height of {matrix[2, 3]:g} m is impossible; expected more than 0, above the "
            "ground. Measure it in m; z points up."
        )
    return matrix


def check_intrinsics(intrinsics: ArrayLike, width: int, height: int, *, where: str, warns: bool = True) -> np.ndarray:
    """Return K as float64 after looking whether it can belong to an image of that size.

    Warns (if `warns`) where its centre is so far from the middle that it may belong to another size.

    Raises:
        ShapeError: with what to do, if it cannot.
    """
    matrix = np.asarray(intrinsics, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ShapeError(
            f"{where}: intrinsics of shape {matrix.shape} are no camera matrix; expected 3 x 3 finite numbers "
            "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]. Check the calibration file."
        )
    fx, fy, cx, cy = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    if fx <= 0 or fy <= 0 or not np.allclose(matrix[2], [0, 0, 1]):
        raise ShapeError(
            f"{where}: fx={fx:g}, fy={fy:g} or the last row {matrix[2].tolist()} is impossible; expected positive "
            "focal lengths in pixels and a last row of 0, 0, 1. Check the order of the matrix."
        )
    if not (0 < cx < width and 0 < cy < height):
        factor = 2 * cx / width
        raise ShapeError(
            f"{where}: the centre ({cx:g}, {cy:g}) lies outside of an image of {width} x {height} pixels, so K "
            f"belongs to another image size; expected a centre near ({width / 2:g}, {height / 2:g}). Scale its first "
            f"row by the ratio of the widths (about {1 / factor:.3g} if the centre is in the middle) and its second by "
            "that of the heights."
        )
    if warns and (abs(cx / width - 0.5) > _OFF_CENTRE[0] or abs(cy / height - 0.5) > _OFF_CENTRE[1]):
        warnings.warn(
            f"{where}: the centre ({cx:g}, {cy:g}) of K lies far from the middle ({width / 2:g}, {height / 2:g}) of an "
            f"image of {width} x {height} pixels. If K belongs to another image size, distances on the map are wrong: "
            "scale K with the image. If the image was cut, all is well.",
            stacklevel=3,
        )
    return matrix


def interpolate_pose(times: Sequence[float], poses: Sequence[np.ndarray], time: float) -> np.ndarray:
    """Return the pose at a time between two known ones: the translation linearly, the rotation by slerp.

    Args:
        times: ascending.
        poses: 4 x 4, as many.
        time: within the times.
    Raises:
        ShapeError: if the time lies outside.
    """
    if not (len(times) and times[0] <= time <= times[-1]):
        raise ShapeError(
            f"interpolate_pose: time={time} lies outside of {list(times)[:1]} to {list(times)[-1:]}; expected a time "
            "between the first and the last pose. Record poses that cover the frames."
        )
    after = int(np.searchsorted(times, time))
    if times[after] == time:
        return np.array(poses[after])
    share = (time - times[after - 1]) / (times[after] - times[after - 1])
    first, last = poses[after - 1], poses[after]
    turn = first[:3, :3].T @ last[:3, :3]
    result = np.eye(4)
    result[:3, :3] = first[:3, :3] @ _rotate_by(_rotation_vector(turn) * share)
    result[:3, 3] = (1 - share) * first[:3, 3] + share * last[:3, 3]
    return result


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Return axis times angle; angles up to pi less a little, which two neighbouring frames stay below."""
    cosine = np.clip((np.trace(rotation) - 1) / 2, -1, 1)
    angle = math.acos(cosine)
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    return axis / 2 if angle < 1e-7 else axis * angle / (2 * math.sin(angle))


def _rotate_by(vector: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    return rotation_matrix(np.concatenate([[math.cos(angle / 2)], vector / angle * math.sin(angle / 2)]))
