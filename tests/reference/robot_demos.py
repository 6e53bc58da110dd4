"""Small data sets of a waving arm, with and without a camera."""

import math

import numpy as np

from featherweight.robot.recording.layout import robot_features
from featherweight.robot.recording.writer import DemoWriter

FPS = 30


def new_writer(root, cameras=None):
    """Return a writer of the arm's features, with a camera "front" of 32 x 48 pixels if asked for."""
    return DemoWriter(root, FPS, "umirobot", robot_features(), {"front": (32, 48)} if cameras else {})


def frame(i, episode):
    """Return (values, picture) of a frame; the brightness of the picture tells its number."""
    angles = [round(40 * math.sin(0.1 * i + joint + episode)) for joint in range(6)]
    values = {"action": [angle + 1 for angle in angles], "observation.state": angles, "observation.t_mono": 5 + i / FPS}
    return values, np.full((32, 48, 3), (20 + 4 * i) % 256, dtype=np.uint8)


def write_episode(writer, length, task="wave"):
    """Write one episode; return its number."""
    for i in range(length):
        values, picture = frame(i, len(writer.rows))
        writer.add(values, {"front": picture})
    return writer.save(task)


def write_scene_episodes(root, episodes, frames, cameras=()):
    """Write episodes of a waving arm with a cube and a bin beside it, in the simulator's features."""
    from featherweight.robot.recording.demonstrations import SCENE_KEY, expert_writer

    writer = expert_writer(root, cameras, (32, 48))
    for number in range(episodes):
        for i in range(frames):
            values, picture = frame(i, number)
            values = {**values, SCENE_KEY: [0.15, 0.01 * number, 0.011, 1.0, 0.0, 0.0, 0.16]}
            writer.add(values, dict.fromkeys(cameras, picture))
        writer.save("wave")
