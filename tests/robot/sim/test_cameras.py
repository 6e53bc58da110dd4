"""Pictures."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.sim.world import World


def test_pictures_show_the_scene_from_three_sides(graphics):
    from featherweight.robot.sim.cameras import Cameras

    world = World("challenge")
    cameras = Cameras(world, ("front", "top", "wrist"), 160, 120)
    pictures = cameras.render()
    cameras.close()

    for picture in pictures.values():
        assert picture.shape == (120, 160, 3) and picture.std() > 10
    reds = [np.mean((p[..., 0] > 120) & (p[..., 1] < 90) & (p[..., 2] < 90)) for p in pictures.values()]
    assert reds[0] > 0.0005 and reds[1] > 0.0005  # the red cube


def test_an_unknown_camera_is_one_sentence(graphics):
    from featherweight.robot.sim.cameras import Cameras

    with pytest.raises(ConfigError, match="Did you mean 'front'"):
        Cameras(World("empty"), ("frnt",))
