"""Does a way of the arm run into the table or into the arm itself?

The arm is a few segments with a thickness: upper arm, forearm, hand; below them stand the base and the turret with the
shoulder's servo, whose numbers are those of the printed parts. Everything happens in the plane of the arm and
beside it (r from the axis of joint 1, s sideways, h up), so joint 1 does not matter. Clearance is signed: negative
means overlap.
"""

import math
from collections.abc import Sequence

from featherweight.robot.kinematics.dh import BASE_HEIGHT_M, FOREARM_M, SHOULDER_M, TOOL_M, UPPER_ARM_M

FINGER_M = 0.006
"""The fingers end this far beyond the tool point."""
TABLE_MARGIN_M = 0.002
"""The fingers stay this high; droop and rounding take 2.7 mm more at worst, which a table bears."""
LINK_RADIUS_M, HAND_RADIUS_M, BASE_RADIUS_M = 0.016, 0.014, 0.038
BASE_TOP_M = 0.058
TURRET_M = ((-0.0405, 0.0215), (-0.020, 0.020), (0.0606, 0.101))
"""Ranges of r, s and h that the turret fills."""
WAY_STEP_DEG = 5.0
"""Distance of the postures that are looked at on the way to a goal."""

Point = tuple[float, float, float]


def clearance(q_deg: Sequence[float], tool_m: float = TOOL_M) -> float:
    """Return the smallest distance of the arm from table, base, its own turret and its own upper arm, in metres.

    Args:
        q_deg: five or six joint angles in degrees.
        tool_m: from the wrist to the tool point.
    Cost: about 25 microseconds; plain Python, since one posture is too small for numpy.
    """
    _, q2, q3, q4, q5 = (math.radians(angle) for angle in q_deg[:5])
    cos, sin = math.cos(q3 - q2), math.sin(q3 - q2)
    shoulder = (0.0, 0.0, BASE_HEIGHT_M + SHOULDER_M)
    elbow = (UPPER_ARM_M * math.sin(q2), 0.0, shoulder[2] + UPPER_ARM_M * math.cos(q2))
    wrist = (elbow[0] + FOREARM_M * cos, 0.0, elbow[2] + FOREARM_M * sin)
    along, across, side = math.cos(q5), math.sin(q5) * math.cos(q4), -math.sin(q5) * math.sin(q4)
    length = tool_m + FINGER_M
    tip = (
        wrist[0] + length * (along * cos - across * sin),
        length * side,
        wrist[2] + length * (along * sin + across * cos),
    )
    result = min(elbow[2] - LINK_RADIUS_M, wrist[2] - LINK_RADIUS_M, tip[2] - TABLE_MARGIN_M)
    for share in (0.35, 0.7, 1.0):
        result = min(result, _to_base(_between(elbow, wrist, share)) - LINK_RADIUS_M)
        result = min(result, _to_base(_between(wrist, tip, share)) - HAND_RADIUS_M)
    for share in (0.25, 0.4, 0.55, 0.7, 0.85, 1.0):
        result = min(result, _to_turret(_between(elbow, wrist, share)) - LINK_RADIUS_M)
    for share in (0.4, 0.7, 1.0):
        result = min(result, _to_turret(_between(wrist, tip, share)) - HAND_RADIUS_M)
        hand = _between(wrist, tip, share)
        result = min(result, _to_segment(hand, shoulder, elbow) - LINK_RADIUS_M - HAND_RADIUS_M)
    return result


def way_is_free(start_deg: Sequence[float], goal_deg: Sequence[float], tool_m: float = TOOL_M) -> bool:
    """Whether the straight way in joint space from one posture to another is free.

    A posture that is not free itself may be left: then the clearance must not shrink below its own on the way.
    """
    farthest = max(abs(goal - start) for goal, start in zip(goal_deg[:5], start_deg[:5], strict=True))
    count = max(1, math.ceil(farthest / WAY_STEP_DEG))
    least: float | None = None
    for i in range(count, 0, -1):
        posture = [start + (goal - start) * i / count for start, goal in zip(start_deg, goal_deg, strict=True)]
        free = clearance(posture, tool_m)
        if free < 0:
            least = clearance(start_deg, tool_m) - 1e-6 if least is None else least
            if free < least:
                return False
    return True


def _between(start: Point, end: Point, share: float) -> Point:
    return (
        start[0] + (end[0] - start[0]) * share,
        start[1] + (end[1] - start[1]) * share,
        start[2] + (end[2] - start[2]) * share,
    )


def _to_base(point: Point) -> float:
    """Distance from the upright cylinder of the base."""
    beside, above = math.hypot(point[0], point[1]) - BASE_RADIUS_M, point[2] - BASE_TOP_M
    return math.hypot(max(beside, 0.0), max(above, 0.0)) + min(max(beside, above), 0.0)


def _to_turret(point: Point) -> float:
    """Distance from the box of the turret."""
    beyond = [max(low - value, value - high) for value, (low, high) in zip(point, TURRET_M, strict=True)]
    return math.hypot(*(max(one, 0.0) for one in beyond)) + min(max(beyond), 0.0)


def _to_segment(point: Point, start: Point, end: Point) -> float:
    """Distance from a segment in the plane of the arm (s = 0)."""
    r, h = end[0] - start[0], end[2] - start[2]
    share = ((point[0] - start[0]) * r + (point[2] - start[2]) * h) / (r * r + h * h)
    near = _between(start, end, max(0.0, min(1.0, share)))
    return math.dist(point, near)
