import numpy as np
import torch

from featherweight.bev import geometry
from featherweight.bev.model.camera import Camera
from featherweight.bev.synthetic.rig import CAMERA_ROTATION, CAMERA_TRANSLATION, INTRINSICS

POSE = geometry.pose(CAMERA_ROTATION, CAMERA_TRANSLATION)
CAMERA = Camera.of(torch.from_numpy(INTRINSICS)[None], torch.from_numpy(POSE)[None], 9.0)


def test_height_and_pitch_come_from_the_pose_or_stand_level():
    torch.testing.assert_close(CAMERA.height, torch.tensor([1.511]), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.rad2deg(CAMERA.pitch), torch.tensor([0.323]), atol=1e-2, rtol=0)
    level = Camera.of(torch.eye(3)[None], None, 1.2)
    assert level.height.item() == torch.tensor(1.2) and level.pitch.item() == 0


def test_the_ground_row_is_that_of_the_geometry():
    depths = torch.tensor([5.0, 20.0, 49.0])
    pitch = float(CAMERA.pitch)
    expected = geometry.ground_row(depths.numpy(), INTRINSICS, CAMERA_TRANSLATION[2], pitch)
    np.testing.assert_allclose(CAMERA.ground_row(depths)[0].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(CAMERA.at_stride(8).ground_row(depths)[0].numpy(), expected / 8, rtol=1e-5)


def test_rows_at_the_ground_of_a_depth_have_its_elevation():
    camera = CAMERA.at_stride(16)
    depth = torch.tensor([10.0])
    row = camera.ground_row(depth)[0, 0]
    angle = torch.atan((row - camera.center_y) / camera.focal_y) + camera.pitch
    torch.testing.assert_close(angle, torch.atan(camera.height / depth), rtol=1e-5, atol=1e-6)
    assert camera.elevation(57).diff(dim=1).gt(0).all()


def test_a_pitch_down_moves_the_ground_up():
    depths = torch.tensor([10.0])
    assert CAMERA.pitched(torch.tensor([0.01])).ground_row(depths) < CAMERA.ground_row(depths)


def test_the_ground_points_of_pixels_are_seen_at_those_pixels():
    camera = CAMERA.at_stride(25)
    points = camera.ground_points(36, 64)
    below = points[0, :, 0, 1].isfinite()
    assert not below[:19].any() and below[20:].all(), "the horizon stands at row 19.3"
    depths = points[0, below, 5, 1]
    rows = torch.arange(36)[below] + 0.5
    torch.testing.assert_close(camera.ground_row(depths)[0], rows, rtol=1e-3, atol=1e-3)
    columns = camera.column(points[0, 30, :, 0], points[0, 30, :, 1])[0]
    torch.testing.assert_close(columns, torch.arange(64) + 0.5, rtol=1e-4, atol=1e-4)
