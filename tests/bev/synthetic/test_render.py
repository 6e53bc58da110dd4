import numpy as np
import pytest

from featherweight.bev.geometry import planar_pose, pose, project, transform
from featherweight.bev.synthetic.render import GROUND, SKY, Atlas, scan, shoot
from featherweight.bev.synthetic.rig import CAMERA_ROTATION, INTRINSICS
from featherweight.bev.synthetic.streets import lay_streets
from featherweight.bev.synthetic.traffic import Thing

SIZE = (320, 180)
K = np.diag([0.2, 0.2, 1.0]) @ INTRINSICS


@pytest.fixture(scope="module")
def streets():
    pytest.importorskip("shapely")
    return lay_streets(np.random.default_rng(0), (0.0, 0.0), 40.0)


@pytest.fixture(scope="module")
def camera(streets):
    x, y, heading = streets.path.place(80.0)
    return planar_pose(x, y, heading) @ pose(CAMERA_ROTATION, (0, 0, 1.5))


def test_a_box_ahead_hides_the_ground_where_its_corners_are_projected(streets, camera):
    x, y, heading = streets.path.place(100.0)
    thing = Thing("vehicle.car", (2.0, 4.0, 1.6), (1.0, 0, 0), (x, y, heading))
    shot = shoot(Atlas(streets), [thing], np.array([thing.place]), camera, K, SIZE)
    center = transform(np.linalg.inv(camera), np.array([x, y, 0.8]))
    u, v = np.floor(project(center, K)).astype(int)
    assert shot.hits[v, u] == 0 and shot.visible[0] == 1.0
    assert shot.depth[v, u] == pytest.approx(18.0, abs=0.3), "20 m away, and 4 m long"
    assert shot.hits[0, 0] == SKY and shot.hits[-1, 160] == GROUND


def test_the_depth_of_the_ground_is_that_of_flat_ground(streets, camera):
    shot = shoot(Atlas(streets), [], np.zeros((0, 3)), camera, K, SIZE)
    for row in (120, 150, 179):
        ray = np.array([160.5, row + 0.5, 1.0]) @ np.linalg.inv(K).T @ camera[:3, :3].T
        assert shot.depth[row, 160] == pytest.approx(-1.5 / ray[2], rel=1e-9)


def test_what_stands_behind_is_hidden(streets, camera):
    near, far = (Thing("building", (6.0, 0.5, 5.0), (0.5, 0.5, 0.5), streets.path.place(s)) for s in (95.0, 120.0))
    shot = shoot(Atlas(streets), [near, far], np.array([near.place, far.place]), camera, K, SIZE)
    assert shot.visible[0] > 0.99 and shot.visible[1] < 0.2


def test_laser_points_lie_on_the_ground_or_on_boxes(streets):
    x, y, heading = streets.path.place(80.0)
    lidar = planar_pose(x, y, heading) @ pose((1, 0, 0, 0), (0, 0, 1.84))
    thing = Thing("vehicle.car", (2.0, 4.0, 1.6), (1.0, 0, 0), streets.path.place(92.0))
    points, hits = scan([thing], np.array([thing.place]), lidar)
    world = transform(lidar, points[:, :3].astype(np.float64))
    np.testing.assert_allclose(world[hits == GROUND, 2], 0, atol=1e-4)
    local = transform(np.linalg.inv(planar_pose(*thing.place)), world[hits == 0])
    assert len(local) > 20 and (np.abs(local) <= np.array([2.0, 1.0, 1.6]) + 1e-4).all()
