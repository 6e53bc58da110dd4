"""What a page knows of a camera says where things appear in its picture."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.camera.pinhole import Pinhole
from featherweight.robot.camera.view import CameraView

pytest.importorskip("mujoco")


def test_the_view_of_a_simulated_camera_says_where_the_cube_appears(graphics):
    from featherweight.robot.sim.cameras import Cameras, fixed_views
    from featherweight.robot.sim.world import World

    world = World("challenge", seed=0, cubes=1)
    views = fixed_views(world, ("front", "top", "wrist"))
    assert set(views) == {"front", "top"}  # the arm carries the other
    cameras = Cameras(world, ("front", "top"))
    pictures = cameras.render()
    cameras.close()
    for name, view in views.items():
        x, y = Pinhole(320, 240, view.fovy_deg).project(world.cube_m(), np.array(view.pose).reshape(3, 4))
        red = pictures[name].astype(int) @ [1, -1, 0] > 60
        # The cube's faces stand at its middle to a part of its 15 pixels.
        assert np.abs(np.argwhere(red).mean(axis=0) - [y, x]).max() < 3, name


def test_a_view_that_is_none_is_one_sentence():
    with pytest.raises(ConfigError, match="pose"):
        CameraView.parse({"fovy_deg": 42, "pose": [0.0] * 11}, where="kit.json")
