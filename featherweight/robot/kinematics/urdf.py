"""The second model: frames as exported from the published scene, a few degrees off zero.

Kept for those who have data in it. With its frame 5 shifted by 11.255 mm along its z axis, it agrees with the D-H model
to 0.53 mm on average and 1.34 mm at most.
"""

import numpy as np
from numpy.typing import ArrayLike

from featherweight.robot.kinematics.dh import ARM_JOINTS, Array

XYZ_M = (
    (-0.015469, 0.003230, 0.059873),
    (0.000147, 0.021247, 0.025149),
    (0.006968, -0.080995, 0.001916),
    (0.004237, -0.113679, 0.023207),
    (-0.011255, 0.000337, 0.051749),
)
"""From the parent's frame to each joint."""
RPY_RAD = (
    (-3.141593, 3.141593, 3.036873),
    (1.571018, 3.235744, 3.134945),
    (0.000190, 3.142856, 1.693853),
    (1.576880, 4.644769, 0.014512),
    (-0.000001, 1.570796, 0.0),
)
"""Fixed axes: R = Rz(yaw) Ry(pitch) Rx(roll)."""
AXIS_SHIFT_M = 0.011255
"""Along z of frame 5 to where the D-H model has its end frame."""


def forward_urdf(q_rad: ArrayLike) -> tuple[Array, Array]:
    """Return the pose of frame 5 in the frame of the exported base.

    Args:
        q_rad: (B, 5) joint angles.
    Returns:
        (B, 3) position in metres and (B, 3, 3) rotation.
    """
    q = np.asarray(q_rad, dtype=np.float64)
    position = np.zeros((*q.shape[:-1], 3))
    rotation = np.broadcast_to(np.eye(3), (*q.shape[:-1], 3, 3))
    for i in range(ARM_JOINTS):
        position = position + rotation @ np.asarray(XYZ_M[i])
        rotation = rotation @ _fixed(RPY_RAD[i]) @ _about_z(q[..., i])
    return position, rotation


def _about_z(angle: Array) -> Array:
    cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    rows = [[cos, -sin, zero], [sin, cos, zero], [zero, zero, zero + 1]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _fixed(rpy_rad: tuple[float, float, float]) -> Array:
    roll, pitch, yaw = rpy_rad
    cr, sr = np.cos(roll), np.sin(roll)
    cp, sp = np.cos(pitch), np.sin(pitch)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    result: Array = _about_z(np.asarray(yaw)) @ about_y @ about_x
    return result
