import numpy as np
import pytest

from featherweight.bev.data.frames import Boxes, Polygons
from featherweight.bev.geometry import quaternion_of_yaw

shapely = pytest.importorskip("shapely")


def test_the_bottom_corners_of_a_box_lie_around_its_centre():
    boxes = Boxes(
        centers=np.array([[10.0, 5.0, 1.0]]),
        sizes=np.array([[2.0, 4.0, 1.5]]),
        rotations=quaternion_of_yaw(np.pi / 2)[None],
        classes=np.array([4]),
        visibility=np.array([4]),
    )
    corners = boxes.corners()[0]
    np.testing.assert_allclose(sorted(corners[:4, 0]), [9, 9, 11, 11], atol=1e-9)
    np.testing.assert_allclose(sorted(corners[:4, 1]), [3, 3, 7, 7], atol=1e-9)
    np.testing.assert_allclose(corners[:4, 2], 0.25)
    np.testing.assert_allclose(corners[4:, 2], 1.75)


def test_an_outline_that_crosses_itself_is_repaired_once_and_left_out_of_published_labels():
    bow = np.array([(0, 0), (2, 2), (2, 0), (0, 2)], float)
    square = np.array([(5, 5), (6, 5), (6, 6), (5, 6)], float)
    polygons = Polygons([[bow], [square]])
    assert sum(shapely.Polygon(rings[0]).area for rings in polygons.valid(0)) == pytest.approx(2.0)
    assert polygons.valid(1) == [[square]]
    assert len(polygons.tree[1]) == 1


def test_only_polygons_near_by_are_looked_at():
    ring = np.array([(0, 0), (1, 0), (1, 1)], float)
    polygons = Polygons([[ring], [ring + 100]])
    assert polygons.near(np.array([-5, -5]), np.array([5, 5])) == [0]
