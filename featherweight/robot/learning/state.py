"""What a policy of the state sees: joints, cube and bin, and what forward kinematics makes of them.

Without the features of forward kinematics the same network puts 44 of 50 cubes into the bin instead of nearly all.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from featherweight.robot.kinematics.dh import Array, tool_point
from featherweight.robot.kit import ARM_JOINTS, JOINT_KEYS
from featherweight.robot.sim.session import SCENE_NAMES

FEATURE_NAMES = (
    *JOINT_KEYS,
    *SCENE_NAMES,
    "tool_r",
    "tool_z",
    "cube_r_from_tool",
    "cube_angle_from_arm",
    "bin_r_from_tool",
    "bin_angle_from_arm",
    "tool_height_over_cube",
)
"""Names of what `state_features` returns."""


def state_features(state_deg: ArrayLike, scene: ArrayLike) -> Array:
    """Return the features of states.

    Args:
        state_deg: (..., 6) reported degrees in the order of the wire.
        scene: (..., 7) metres and cosines; see `SCENE_NAMES`.
    Returns:
        (..., 20): joints / 90, the scene, the tool's distance from the axis of the base and height, cube and bin in
        polar form relative to the tool, and the tool's height over the cube.
    """
    q, scene = np.asarray(state_deg, dtype=np.float64), np.asarray(scene, dtype=np.float64)
    tool = tool_point(np.radians(q[..., :ARM_JOINTS]))
    tool_r, pan = np.hypot(tool[..., 0], tool[..., 1]), np.radians(q[..., 0])
    polar = []
    for x, y in ((scene[..., 0], scene[..., 1]), (scene[..., 5], scene[..., 6])):
        polar += [np.hypot(x, y) - tool_r, np.arctan2(y, x) - pan]
    columns = [tool_r, tool[..., 2], *polar, tool[..., 2] - scene[..., 2]]
    return np.concatenate([q / 90, scene, np.stack(columns, axis=-1)], axis=-1)


PROPRIOCEPTION = (*JOINT_KEYS, "tool_r", "tool_z")
"""Features that need no scene: what an arm knows of itself."""


def select_features(names: Sequence[str], state_deg: ArrayLike, scene: ArrayLike | None) -> Array:
    """Return (..., F) the features of some names.

    Args:
        names: of `FEATURE_NAMES`.
        state_deg: (..., 6) reported degrees in the order of the wire.
        scene: (..., 7), or None if none of the names needs it.
    """
    state = np.asarray(state_deg, dtype=np.float64)
    everything = state_features(state, np.zeros((*state.shape[:-1], len(SCENE_NAMES))) if scene is None else scene)
    return everything[..., [FEATURE_NAMES.index(name) for name in names]]
