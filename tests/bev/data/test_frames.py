import numpy as np

from featherweight.bev.data.frames import Boxes
from featherweight.bev.geometry import quaternion_of_yaw


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


def test_no_boxes_have_no_corners():
    assert len(Boxes.none()) == 0 and Boxes.none().corners().shape == (0, 8, 3)
