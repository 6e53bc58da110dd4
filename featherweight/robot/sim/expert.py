"""A scripted expert that picks a cube and puts it into the bin: targets in degrees, one each thirtieth of a second.

Used as a leader, for demonstrations, and to check that the scene can be solved with whole degrees at the firmware's
speed.
"""

import math
from collections.abc import Iterator

import numpy as np

from featherweight.errors import ConfigError
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.kinematics.inverse import table_top
from featherweight.robot.sim.world import World

RATE_HZ = 30.0
HOVER_M, GRASP_M, CARRY_M, DROP_M = 0.065, 0.012, 0.080, 0.055
"""Heights of the tool over the table."""
LINE_SPEED_M_S, JOINT_SPEED_DEG_S = 0.060, 75.0
OPEN_DEG, CLOSED_DEG = 60.0, -45.0
SETTLE_S, GRIP_S = 0.25, 0.7


def pick_and_place(cube_m: Array, bin_m: Array, start_deg: Array | None = None) -> Iterator[Array]:
    """Yield (6,) targets in degrees that bring a cube into the bin.

    Args:
        cube_m: (3,) centre of the cube in the world; read once, at the start.
        bin_m: (3,) centre of the bin's floor.
        start_deg: (6,) where the arm is; None stands for zero.
    Raises:
        ConfigError: if the cube or the bin is out of reach.
    """
    now = np.zeros(6) if start_deg is None else np.asarray(start_deg, dtype=np.float64)
    above = np.array([cube_m[0], cube_m[1], HOVER_M])
    at = np.array([cube_m[0], cube_m[1], GRASP_M])
    over_bin, in_bin = np.array([*bin_m[:2], CARRY_M]), np.array([*bin_m[:2], DROP_M])
    lifted = np.array([cube_m[0], cube_m[1], CARRY_M])
    moves = [
        *_joint_move(now, _pose(above, OPEN_DEG)),
        *_wait(_pose(above, OPEN_DEG), SETTLE_S),
        *_line(above, at, OPEN_DEG),
        *_wait(_pose(at, OPEN_DEG), SETTLE_S),
        *_wait(_pose(at, CLOSED_DEG), GRIP_S + (OPEN_DEG - CLOSED_DEG) / 88),
        *_line(at, lifted, CLOSED_DEG),
        *_joint_move(_pose(lifted, CLOSED_DEG), _pose(over_bin, CLOSED_DEG)),
        *_wait(_pose(over_bin, CLOSED_DEG), SETTLE_S),
        *_line(over_bin, in_bin, CLOSED_DEG),
        *_wait(_pose(in_bin, OPEN_DEG), GRIP_S + (OPEN_DEG - CLOSED_DEG) / 88),
        *_line(in_bin, over_bin, OPEN_DEG),
        *_wait(_pose(over_bin, OPEN_DEG), SETTLE_S),
    ]
    yield from moves


def _pose(point_m: Array, gripper_deg: float) -> Array:
    joints = table_top(point_m)
    if joints is None:
        raise ConfigError(
            f"pick_and_place: point_m={np.round(point_m, 3).tolist()} is out of reach; expected 0.105 to 0.26 m "
            f"from the base. "
            "Move the cube or the bin."
        )
    return np.array([*np.degrees(joints), gripper_deg])


def _line(start_m: Array, end_m: Array, gripper_deg: float) -> Iterator[Array]:
    count = max(1, math.ceil(float(np.linalg.norm(end_m - start_m)) / LINE_SPEED_M_S * RATE_HZ))
    for i in range(1, count + 1):
        yield _pose(start_m + (end_m - start_m) * i / count, gripper_deg)


def _joint_move(start_deg: Array, end_deg: Array) -> Iterator[Array]:
    count = max(1, math.ceil(float(np.abs(end_deg - start_deg).max()) / JOINT_SPEED_DEG_S * RATE_HZ))
    for i in range(1, count + 1):
        yield start_deg + (end_deg - start_deg) * i / count


def _wait(pose_deg: Array, duration_s: float) -> Iterator[Array]:
    for _ in range(round(duration_s * RATE_HZ)):
        yield pose_deg


def pick_all(world: World) -> Iterator[Array]:
    """Yield targets that bring every reachable cube of a world into its bin, one after the other."""
    now = np.zeros(6)
    for index in range(len(world.cubes)):
        try:
            targets = list(pick_and_place(world.cube_m(index), world.bin_m, now))
        except ConfigError:
            continue
        yield from targets
        now = targets[-1]
