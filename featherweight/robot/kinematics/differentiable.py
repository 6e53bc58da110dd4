"""The forward kinematics in torch: batched and differentiable. The only file of the robot that imports torch."""

import math

import torch
from torch import Tensor

from featherweight.errors import ShapeError
from featherweight.robot.kinematics.dh import A_M, ALPHA_RAD, ARM_JOINTS, D_M, OFFSETS_RAD


def forward(q_rad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pose of the end frame in the D-H base; gradients flow to the angles.

    Args:
        q_rad: (B, 5) joint angles, any float type and device.
    Returns:
        (B, 3) position in metres and (B, 3, 3) rotation, of the type and device of `q_rad`.
    Raises:
        ShapeError: if the last axis is not 5.
    """
    if q_rad.ndim == 0 or q_rad.shape[-1] != ARM_JOINTS:
        raise ShapeError(
            f"kinematics: q_rad has shape {tuple(q_rad.shape)}; expected (..., {ARM_JOINTS}). Leave the gripper out."
        )
    pose = torch.eye(4, dtype=q_rad.dtype, device=q_rad.device).expand(*q_rad.shape[:-1], 4, 4)
    for i in range(ARM_JOINTS):
        angle = q_rad[..., i] + OFFSETS_RAD[i]
        cos, sin = torch.cos(angle), torch.sin(angle)
        ca, sa = round(math.cos(ALPHA_RAD[i])), round(math.sin(ALPHA_RAD[i]))
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rows = [
            [cos, -sin * ca, sin * sa, A_M[i] * cos],
            [sin, cos * ca, -cos * sa, A_M[i] * sin],
            [zero, one * sa, one * ca, one * D_M[i]],
            [zero, zero, zero, one],
        ]
        pose = pose @ torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return pose[..., :3, 3], pose[..., :3, :3]


def jacobian(q_rad: Tensor) -> Tensor:
    """Return (B, 3, 5) the derivative of the end frame's position by the angles, by automatic differentiation."""
    flat = q_rad.reshape(-1, ARM_JOINTS)
    result = torch.func.vmap(torch.func.jacrev(lambda q: forward(q)[0]))(flat)
    return result.reshape(*q_rad.shape[:-1], 3, ARM_JOINTS)
