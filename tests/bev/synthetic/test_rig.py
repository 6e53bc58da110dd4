import numpy as np
import pytest

from featherweight.bev.synthetic.rig import INTRINSICS, WorldConfig, camera_pose, intrinsics_of


def test_the_camera_of_a_drawn_world_is_that_of_nuscenes_scaled():
    full = intrinsics_of(WorldConfig(image_width=1600, image_height=900))
    np.testing.assert_array_equal(full, INTRINSICS)
    small = intrinsics_of(WorldConfig(image_width=224, image_height=128))
    assert small[0, 0] == pytest.approx(0.14 * INTRINSICS[0, 0]) and small[1, 1] == pytest.approx(1266.417 * 128 / 900)


def test_another_rig_stands_lower_and_sees_farther():
    low = WorldConfig(camera_height=0.35, focal_length=700)
    assert camera_pose(low)[2, 3] == 0.35 and intrinsics_of(low)[0, 0] == pytest.approx(700 * 0.3)
