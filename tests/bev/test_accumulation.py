import numpy as np

from featherweight.bev.accumulation import MapAccumulator
from featherweight.bev.geometry import planar_pose
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.streaming import level_camera

GRID = BEVGridConfig(x_min=-10, x_max=10, z_min=1, z_max=21, resolution=0.5, anchor="center")


def test_frames_that_agree_outvote_one_that_does_not(tmp_path):
    maps = MapAccumulator(2, GRID)
    road = np.stack([np.full(GRID.shape, 0.9), np.full(GRID.shape, 0.2)])
    camera = planar_pose(100, 50, 0.4) @ level_camera(1.5)
    for _ in range(3):
        maps.add(road, np.ones(GRID.shape, bool), camera)
    maps.add(1 - road, np.ones(GRID.shape, bool), camera)
    masks, known, _ = maps.picture_around(camera)
    assert known.sum() == masks[0].sum() == len(maps) > 0.6 * GRID.rows * GRID.columns and not masks[1].any()
    stored = np.load(maps.save(tmp_path / "map.npz"))
    assert len(stored["cells"]) == len(maps) and stored["resolution"] == 0.5


def test_places_are_places_of_the_world_whatever_the_heading():
    maps = MapAccumulator(1, GRID)
    spot = np.zeros((1, *GRID.shape))
    spot[0, 18:20, 19:21] = 1.0  # 10 m ahead
    for yaw in (0.0, 1.0, 2.5):
        x, y = 200 - 10 * np.cos(yaw), 80 - 10 * np.sin(yaw)
        maps.add(spot, spot[0] > 0.5, planar_pose(x, y, yaw) @ level_camera(1.5))
    masks, _, grid = maps.picture_around(planar_pose(200, 80, 0))
    row, column = np.argwhere(masks[0]).T
    assert np.hypot(column - grid.columns / 2, row - grid.rows / 2).max() * 0.5 < 2
