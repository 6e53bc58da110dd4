"""Forward kinematics and Jacobian of the D-H model, vectorised in numpy. B stands for any leading axes.

T_i = Rz(offset_i + q_i) Tz(d_i) Tx(a_i) Rx(alpha_i). The end frame stands on the axis of joint 5; the tool point lies
`TOOL_M` along its -y axis, where the fingers are.
Source: numbers of the model that the official controller uses (facts; no code of it).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featherweight.errors import ShapeError
from featherweight.robot.kit import ARM_JOINTS

Array = NDArray[np.float64]

BASE_HEIGHT_M = 0.0606
"""Height of the D-H base above the table."""
TOOL_M = 0.085
"""From the wrist to the tool point; the fingers end 6 mm beyond it."""
SHOULDER_M = 0.0245
"""Height of the shoulder above the D-H base."""
UPPER_ARM_M = 0.1058 - 0.0245
FOREARM_M = 0.12333 + 0.04186
LIMIT_RAD = np.pi / 2

OFFSETS_RAD = (0.0, -np.pi / 2, 0.0, 0.0, 0.0)
D_M = (SHOULDER_M, 0.0, 0.0, FOREARM_M, 0.0)
A_M = (0.0, UPPER_ARM_M, 0.0, 0.0, 0.0)
ALPHA_RAD = (-np.pi / 2, np.pi, np.pi / 2, -np.pi / 2, 0.0)


def frames(q_rad: ArrayLike) -> Array:
    """Return the frames of the base and of the five joints.

    Args:
        q_rad: (B, 5) joint angles.
    Returns:
        (B, 6, 4, 4); frame 0 is the base, frame i follows joint i.
    Raises:
        ShapeError: if the last axis is not 5.
    """
    q = np.asarray(q_rad, dtype=np.float64)
    if q.ndim == 0 or q.shape[-1] != ARM_JOINTS:
        raise ShapeError(f"kinematics: q_rad has shape {q.shape}; expected (..., {ARM_JOINTS}). Leave the gripper out.")
    batch = q.shape[:-1]
    result = np.empty((*batch, ARM_JOINTS + 1, 4, 4))
    result[..., 0, :, :] = np.eye(4)
    for i in range(ARM_JOINTS):
        angle = q[..., i] + OFFSETS_RAD[i]
        cos, sin = np.cos(angle), np.sin(angle)
        # Exact zeros and ones of alpha, which is a multiple of 90 degrees.
        ca, sa = round(np.cos(ALPHA_RAD[i])), round(np.sin(ALPHA_RAD[i]))
        step = np.zeros((*batch, 4, 4))
        step[..., 0, 0], step[..., 0, 1], step[..., 0, 2] = cos, -sin * ca, sin * sa
        step[..., 1, 0], step[..., 1, 1], step[..., 1, 2] = sin, cos * ca, -cos * sa
        step[..., 2, 1], step[..., 2, 2], step[..., 3, 3] = sa, ca, 1
        step[..., 0, 3], step[..., 1, 3], step[..., 2, 3] = A_M[i] * cos, A_M[i] * sin, D_M[i]
        result[..., i + 1, :, :] = result[..., i, :, :] @ step
    return result


def forward(q_rad: ArrayLike) -> tuple[Array, Array]:
    """Return the pose of the end frame in the D-H base.

    Args:
        q_rad: (B, 5) joint angles.
    Returns:
        (B, 3) position in metres and (B, 3, 3) rotation.
    Example:
        >>> forward([0, 0, 0, 0, 0])[0].round(6).tolist()
        [0.16519, 0.0, 0.1058]
    """
    end = frames(q_rad)[..., -1, :, :]
    return end[..., :3, 3], end[..., :3, :3]


def jacobian(q_rad: ArrayLike, tool_m: float = 0.0) -> Array:
    """Return the geometric Jacobian: rows 0-2 velocity in m/s, rows 3-5 angular velocity, per rad/s of each joint.

    Args:
        q_rad: (B, 5) joint angles.
        tool_m: of the tool point; 0 stands for the end frame.
    Returns:
        (B, 6, 5).
    """
    all_frames = frames(q_rad)
    end = all_frames[..., -1, :, :]
    point = end[..., :3, 3] - tool_m * end[..., :3, 1]
    axes, origins = all_frames[..., :-1, :3, 2], all_frames[..., :-1, :3, 3]
    linear = np.cross(axes, point[..., None, :] - origins)
    return np.swapaxes(np.concatenate([linear, axes], axis=-1), -1, -2)


def wrist_point(q_rad: ArrayLike) -> Array:
    """Return (B, 3) the end frame's origin in the D-H base, from the planar form; it depends on joints 1-3 alone."""
    q = np.asarray(q_rad, dtype=np.float64)
    q1, q2, q3 = q[..., 0], q[..., 1], q[..., 2]
    r = UPPER_ARM_M * np.sin(q2) + FOREARM_M * np.cos(q3 - q2)
    h = UPPER_ARM_M * np.cos(q2) + FOREARM_M * np.sin(q3 - q2) + SHOULDER_M
    return np.stack([r * np.cos(q1), r * np.sin(q1), h], axis=-1)


def tool_point(q_rad: ArrayLike, tool_m: float = TOOL_M) -> Array:
    """Return (B, 3) the tool point in the world, whose z = 0 is the table.

    Args:
        q_rad: (B, 5) joint angles.
        tool_m: from the wrist to the tool point.
    """
    position, rotation = forward(q_rad)
    point = position - tool_m * rotation[..., :, 1]
    point[..., 2] += BASE_HEIGHT_M
    return point


def quaternion(rotation: Array) -> Array:
    """Return (B, 4) unit quaternions w, x, y, z with w >= 0 of (B, 3, 3) rotations."""
    m = np.asarray(rotation, dtype=np.float64)
    # The symmetric 4 x 4 matrix whose largest eigenvector is the quaternion: exact to rounding for every rotation.
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    k = np.empty((*m.shape[:-2], 4, 4))
    k[..., 0, 0] = trace
    k[..., 1:, 1:] = m + np.swapaxes(m, -1, -2) - trace[..., None, None] * np.eye(3)
    vector = np.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], axis=-1)
    k[..., 0, 1:] = k[..., 1:, 0] = vector
    result = np.linalg.eigh(k)[1][..., -1]
    return np.where(result[..., :1] < 0, -result, result)
