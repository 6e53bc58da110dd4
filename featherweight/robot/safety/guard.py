"""Does a way of the arm run into the table or into the arm itself?

The arm is a few segments with a thickness: upper arm, forearm, hand. Their distances to the table and to the base are
computed in closed form for many postures at once. Clearance is signed: negative means overlap.
"""

import math
from collections.abc import Sequence

import numpy as np

from featherweight.robot.kinematics.dh import BASE_HEIGHT_M, TOOL_M, Array, frames

FINGER_M = 0.006
"""The fingers end this far beyond the tool point."""
TABLE_MARGIN_M = 0.002
"""The fingers stay this high; droop and rounding take 2.7 mm more at worst, which a table bears."""
LINK_RADIUS_M, HAND_RADIUS_M, BASE_RADIUS_M = 0.016, 0.014, 0.038
BASE_TOP_M = 0.058
WAY_STEP_DEG = 5.0
"""Distance of the postures that are looked at on the way to a goal."""


def clearance(q_deg: Array, tool_m: float = TOOL_M) -> Array:
    """Return the smallest distance of the arm from the table, from its base and from its own upper arm.

    Args:
        q_deg: (B, 5) or (B, 6) joint angles in degrees.
        tool_m: from the wrist to the tool point.
    Returns:
        (B,) metres; negative where they overlap.
    Cost: about 0.15 ms for up to 40 postures.
    """
    poses = frames(np.radians(np.asarray(q_deg, dtype=np.float64)[..., :5]))
    lift = np.array([0, 0, BASE_HEIGHT_M])
    shoulder = poses[..., 1, :3, 3] + lift
    elbow, wrist = poses[..., 3, :3, 3] + lift, poses[..., 5, :3, 3] + lift
    tip = wrist - (tool_m + FINGER_M) * poses[..., 5, :3, 1]
    table = np.minimum(np.minimum(elbow[..., 2], wrist[..., 2]) - LINK_RADIUS_M, tip[..., 2] - TABLE_MARGIN_M)
    result = table
    for start, end, radius in ((elbow, wrist, LINK_RADIUS_M), (wrist, tip, HAND_RADIUS_M)):
        for share in (0.35, 0.7, 1.0):
            point = start + (end - start) * share
            result = np.minimum(result, _to_base(point) - radius)
    for share in (0.4, 0.7, 1.0):
        point = wrist + (tip - wrist) * share
        result = np.minimum(result, _to_segment(point, shoulder, elbow) - LINK_RADIUS_M - HAND_RADIUS_M)
    return np.asarray(result)


def way_is_free(start_deg: Sequence[float], goal_deg: Sequence[float], tool_m: float = TOOL_M) -> bool:
    """Whether the straight way in joint space from one posture to another is free.

    A posture that is not free itself may be left: then the clearance must not shrink on the way.
    """
    start, goal = np.asarray(start_deg, dtype=np.float64), np.asarray(goal_deg, dtype=np.float64)
    count = max(1, math.ceil(float(np.abs(goal - start)[:5].max()) / WAY_STEP_DEG))
    shares = np.arange(count + 1)[:, None] / count
    free = clearance(start + (goal - start) * shares, tool_m)
    return bool(np.all(free[1:] >= min(0.0, float(free[0]) - 1e-6)))


def _to_base(point: Array) -> Array:
    """Distance from the upright cylinder of the base."""
    beside = np.hypot(point[..., 0], point[..., 1]) - BASE_RADIUS_M
    above = point[..., 2] - BASE_TOP_M
    outside = np.hypot(np.maximum(beside, 0), np.maximum(above, 0))
    return np.asarray(outside + np.minimum(np.maximum(beside, above), 0))


def _to_segment(point: Array, start: Array, end: Array) -> Array:
    along = end - start
    share = np.clip(np.sum((point - start) * along, axis=-1) / np.sum(along * along, axis=-1), 0, 1)
    return np.asarray(np.linalg.norm(point - start - share[..., None] * along, axis=-1))
