"""Kinematics of the arm: forward, Jacobians, closed-form inverse, whole-degree search.

Angles in radians, lengths in metres. `forward` and `jacobian` are in the frame of the D-H base, as published;
`tool_point` and the table-top functions in the world, whose z = 0 is the table.
"""

from featherweight.robot.kinematics.dh import (
    BASE_HEIGHT_M,
    TOOL_M,
    forward,
    jacobian,
    quaternion,
    tool_point,
    wrist_point,
)
from featherweight.robot.kinematics.integer import IntegerSearch, search_integers
from featherweight.robot.kinematics.inverse import approach_angles, nearest_position, position_angles, table_top
from featherweight.robot.kinematics.urdf import forward_urdf

__all__ = [
    "BASE_HEIGHT_M",
    "TOOL_M",
    "IntegerSearch",
    "approach_angles",
    "forward",
    "forward_urdf",
    "jacobian",
    "nearest_position",
    "position_angles",
    "quaternion",
    "search_integers",
    "table_top",
    "tool_point",
    "wrist_point",
]
