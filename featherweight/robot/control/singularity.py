"""How near a singularity the arm is, and how much slower it should go there."""

import numpy as np
from numpy.typing import ArrayLike

from featherweight.robot.kinematics.dh import jacobian

SLOW_CONDITION, STOP_CONDITION = 17.0, 30.0
"""Condition numbers between which Cartesian speed falls from all to nothing; values of MoveIt Servo."""


def singularity_scale(q_rad: ArrayLike, tool_m: float = 0.0) -> float:
    """Return the share of a Cartesian speed that is safe: 1 far from singularities, 0 in them.

    Args:
        q_rad: (5,) joint angles.
        tool_m: of the point that moves.
    """
    values = np.linalg.svd(
        jacobian(q_rad, tool_m)[:3, :3] if tool_m == 0 else jacobian(q_rad, tool_m)[:3], compute_uv=False
    )
    if values[-1] <= 0:
        return 0.0
    condition = float(values[0] / values[-1])
    return float(np.clip((STOP_CONDITION - condition) / (STOP_CONDITION - SLOW_CONDITION), 0.0, 1.0))
