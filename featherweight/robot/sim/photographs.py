"""The simulator as photographer: poses with the card in view, pictures of them, and how far off the model is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featherweight.robot.camera.fiducial import GRIPPER_CARD
from featherweight.robot.kinematics.dh import Array, frames, tool_point
from featherweight.robot.kit import ARM_JOINTS, SERVOS
from featherweight.robot.safety.guard import way_is_free
from featherweight.robot.sim.cameras import Cameras
from featherweight.robot.sim.world import World

LOWEST_M = 0.05
"""Height of the tool that errors of assembly of a few degrees do not bring to the table."""
LOOP_S, REST_S = 0.0114, 0.4
"""Of the firmware, which turns a servo by a degree in each; and until the arm is at rest."""
FACING = 0.3
"""Cosine of the angle between the card and the way to the camera above which its dots are round enough."""
RANGES_DEG = ((-45, 45), (-20, 40), (-40, 20), (-40, 40), (-80, -10))


def calibration_poses(count: int, seed: int = 0, camera_m: Sequence[float] = (0.55, 0.0, 0.33)) -> Array:
    """Draw (count, 6) whole degrees in which the card on the gripper faces a camera and nothing is near the table.

    Args:
        count: of poses.
        seed: of the draw.
        camera_m: (3,) about where the camera stands; the default is that of the simulator's camera "front".
    """
    generator, poses = np.random.default_rng(seed), list[Array]()
    now = np.zeros(SERVOS)
    while len(poses) < count:
        pose = np.array([*(round(generator.uniform(*limits)) for limits in RANGES_DEG), 0.0])
        end = frames(np.radians(pose[:ARM_JOINTS]))[-1]
        center = end[:3, :3] @ np.array(GRIPPER_CARD.center_m) + end[:3, 3]
        way = np.array(camera_m) - center
        faces = float(end[:3, :3] @ GRIPPER_CARD.normal @ way) / float(np.linalg.norm(way))
        is_high = tool_point(np.radians(pose[:ARM_JOINTS]))[2] > LOWEST_M
        if faces > FACING and is_high and way_is_free(tuple(now), tuple(pose)):
            poses.append(pose)
            now = pose
    return np.array(poses)


def go(world: World, start_deg: Array, end_deg: Array) -> None:
    """Turn the servos as the firmware does, and wait until the arm is at rest."""
    servo = start_deg.copy()
    for _ in range(int(np.abs(end_deg - start_deg).max())):
        servo += np.clip(end_deg - servo, -1, 1)
        world.step(servo, LOOP_S)
    world.step(end_deg, REST_S)


def take_pictures(
    world: World, poses_deg: Array, camera: str = "front", width_px: int = 640, height_px: int = 480
) -> list[NDArray[np.uint8]]:
    """Return one picture of each pose; the arm begins at zero.

    Raises:
        DeviceError: if no pictures can be drawn here.
    """
    cameras, now, pictures = Cameras(world, (camera,), width_px, height_px), np.zeros(SERVOS), []
    try:
        for pose in poses_deg:
            go(world, now, pose)
            now = pose
            pictures.append(cameras.render()[camera])
    finally:
        cameras.close()
    return pictures


def model_errors_m(world: World, poses_deg: Array, zero_offset_deg: Sequence[float]) -> Array:
    """Return (n,) distances of where the model believes the tool to be from where it is; gravity bends the arm, too."""
    world.reset()
    now, errors = np.zeros(SERVOS), []
    for pose in poses_deg:
        go(world, now, pose)
        now = pose
        believed = tool_point(np.radians(pose[:ARM_JOINTS] - np.array(zero_offset_deg)[:ARM_JOINTS]))
        errors.append(float(np.linalg.norm(believed - world.tool_m)))
    return np.array(errors)
