"""Inverse kinematics in closed form.

The wrist depends on joints 1-3 alone, and of the configurations that reach a point exactly one respects the limits
(but on their border). Joints 4 and 5 then turn the tool. So nothing is iterated and nothing gets stuck.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from featherweight.robot.kinematics.dh import (
    BASE_HEIGHT_M,
    FOREARM_M,
    LIMIT_RAD,
    SHOULDER_M,
    TOOL_M,
    UPPER_ARM_M,
    Array,
    frames,
)

_TOLERANCE = 1e-9
STEEPEST_DEG, FLATTEST_DEG = -90, -30
"""Elevations of the tool that `table_top` tries, from straight down."""


def position_angles(position_m: ArrayLike) -> Array:
    """Return joints 1-3 that bring the wrist to a point.

    Args:
        position_m: (B, 3) in the D-H base.
    Returns:
        (B, 3) angles within the limits, NaN where the point cannot be reached.
    Cost: closed form; about 40 microseconds for one point, 0.2 for each of many.
    """
    point = np.asarray(position_m, dtype=np.float64)
    x, y, h = point[..., 0], point[..., 1], point[..., 2] - SHOULDER_M
    radius = np.hypot(x, y)
    a, d = UPPER_ARM_M, FOREARM_M
    sin3 = (radius**2 + h**2 - a**2 - d**2) / (2 * a * d)
    q3 = np.where(np.abs(sin3) <= 1 + _TOLERANCE, np.arcsin(np.clip(sin3, -1, 1)), np.nan)
    along, across = a + d * np.sin(q3), d * np.cos(q3)
    result = np.full((*point.shape[:-1], 3), np.nan)
    for side in (1.0, -1.0):
        r = side * radius
        q1 = np.arctan2(side * y, side * x)
        q2 = np.arctan2(along * r - across * h, along * h + across * r)
        branch = np.stack([q1, q2, q3], axis=-1)
        is_within = np.all(np.abs(branch) <= LIMIT_RAD + _TOLERANCE, axis=-1)
        is_taken = is_within & np.isnan(result[..., 0])
        result = np.where(is_taken[..., None], np.clip(branch, -LIMIT_RAD, LIMIT_RAD), result)
    return result


def nearest_position(position_m: ArrayLike) -> tuple[float, float, float]:
    """Return joints 1-3 for a point, or for a reachable one near it if it cannot be reached; never NaN.

    Args:
        position_m: (3,) in the D-H base.
    """
    x, y, z = (float(value) for value in np.asarray(position_m, dtype=np.float64))
    h, radius = z - SHOULDER_M, math.hypot(x, y)
    distance = math.hypot(radius, h)
    a, d = UPPER_ARM_M, FOREARM_M
    # With the elbow at its limits the wrist stands between d - a and d + a from the shoulder.
    wanted = min(max(distance, d - a), d + a)
    scale = wanted / distance if distance > 1e-12 else 0.0
    radius, h = (radius * scale, h * scale) if scale else (wanted, 0.0)
    sin3 = (wanted**2 - a**2 - d**2) / (2 * a * d)
    q3 = math.asin(max(-1.0, min(1.0, sin3)))
    along, across = a + d * math.sin(q3), d * math.cos(q3)
    best, least = (0.0, 0.0, q3), math.inf
    for side in (1.0, -1.0):
        r = side * radius
        q1 = math.atan2(side * y, side * x) if x or y else 0.0
        q2 = math.atan2(along * r - across * h, along * h + across * r)
        clipped = tuple(max(-LIMIT_RAD, min(LIMIT_RAD, angle)) for angle in (q1, q2))
        excess = abs(q1 - clipped[0]) + abs(q2 - clipped[1])
        if excess < least:
            best, least = (clipped[0], clipped[1], q3), excess
    return best


def approach_angles(q123_rad: ArrayLike, approach: ArrayLike, q4_now_rad: float = 0.0) -> tuple[float, float]:
    """Return joints 4 and 5 that point the tool along a direction.

    Args:
        q123_rad: (3,) joints 1-3.
        approach: (3,) direction in the base's frame, any length.
        q4_now_rad: kept where the direction continues the forearm and joint 4 is free.
    Returns:
        (q4, q5) with |q4| <= 90 degrees; q5 may be beyond its limit, and is then clamped: the tool points as near as
        it can.
    """
    q = np.zeros(5)
    q[:3] = q123_rad
    direction = np.asarray(approach, dtype=np.float64)
    v = frames(q)[3, :3, :3].T @ (direction / np.linalg.norm(direction))
    if math.hypot(v[0], v[1]) < 1e-9:
        q4, q5 = q4_now_rad, 0.0 if v[2] > 0 else math.pi
    else:
        q4, q5 = math.atan2(v[1], v[0]), math.acos(max(-1.0, min(1.0, float(v[2]))))
    if abs(q4) > LIMIT_RAD + _TOLERANCE:
        q4, q5 = q4 - math.copysign(math.pi, q4), -q5
    return max(-LIMIT_RAD, min(LIMIT_RAD, q4)), max(-LIMIT_RAD, min(LIMIT_RAD, q5))


def table_top(point_m: ArrayLike, tool_m: float = TOOL_M, elevation_deg: float | None = None) -> Array | None:
    """Return the five joints that bring the tool to a point over the table, pointing down as steeply as they can.

    Args:
        point_m: (3,) in the world, whose z = 0 is the table.
        tool_m: from the wrist to the tool point.
        elevation_deg: of the tool, -90 straight down; None tries -90, -89, ... -30.
    Returns:
        (5,) angles within the limits, or None if the point is out of reach.
    """
    x, y, z = (float(value) for value in np.asarray(point_m, dtype=np.float64))
    q1, radius = math.atan2(y, x), math.hypot(x, y)
    elevations = range(STEEPEST_DEG, FLATTEST_DEG + 1) if elevation_deg is None else (elevation_deg,)
    a, d = UPPER_ARM_M, FOREARM_M
    for elevation in elevations:
        angle = math.radians(elevation)
        r = radius - tool_m * math.cos(angle)
        h = z - tool_m * math.sin(angle) - SHOULDER_M - BASE_HEIGHT_M
        sin3 = (r * r + h * h - a * a - d * d) / (2 * a * d)
        if abs(sin3) > 1:
            continue
        q3 = math.asin(sin3)
        along, across = a + d * math.sin(q3), d * math.cos(q3)
        q2 = math.atan2(along * r - across * h, along * h + across * r)
        joints = np.array([q1, q2, q3, 0.0, angle - (q3 - q2)])
        if np.all(np.abs(joints) <= LIMIT_RAD):
            return joints
    return None
