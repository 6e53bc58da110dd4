import math

import numpy as np
import pytest

from featherweight.bev import geometry as g
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.synthetic.rig import CAMERA_ROTATION, CAMERA_TRANSLATION, INTRINSICS
from featherweight.errors import ShapeError

CAMERA_TO_EGO = g.pose(CAMERA_ROTATION, CAMERA_TRANSLATION)
random = np.random.default_rng(0)
POINTS = random.uniform([-10, -3, 2], [10, 3, 40], size=(50, 3))


def some_pose(seed: int, far: float = 3000.0) -> np.ndarray:
    numbers = np.random.default_rng(seed)
    return g.pose(numbers.standard_normal(4), numbers.uniform(-far, far, 3))


def driving_camera(x: float, y: float, yaw: float) -> np.ndarray:
    return g.planar_pose(x, y, yaw) @ CAMERA_TO_EGO


def test_the_real_front_camera_looks_ahead_and_a_third_of_a_degree_down():
    axis = CAMERA_TO_EGO[:3, 2]
    np.testing.assert_allclose(axis, (1.000, 0.0057, -0.0056), atol=1e-4)
    assert math.degrees(math.asin(-axis[2])) == pytest.approx(0.32, abs=0.01)


def test_the_published_share_of_the_grid_lies_in_its_field_of_view():
    assert g.view_share(BEVGridConfig(), INTRINSICS, 1600) == pytest.approx(0.6137, abs=2e-4)


def test_changed_intrinsics_project_to_where_the_changed_picture_shows_a_point():
    before = g.project(POINTS, INTRINSICS)
    resized = g.project(POINTS, g.resize_intrinsics(INTRINSICS, 0.14, 0.1422))
    np.testing.assert_allclose(resized, before * [0.14, 0.1422], atol=1e-9)
    np.testing.assert_allclose(g.project(POINTS, g.crop_intrinsics(INTRINSICS, 7, 30)), before - [7, 30], atol=1e-9)
    mirrored = g.project(POINTS * [-1, 1, 1], g.flip_intrinsics(INTRINSICS, 1600))
    np.testing.assert_allclose(mirrored, [1600, 0] + before * [-1, 1], atol=1e-9)
    np.testing.assert_allclose(g.project(POINTS, g.feature_intrinsics(INTRINSICS, 16)), before / 16, atol=1e-9)


def test_a_tilted_camera_sees_what_the_homography_says():
    tilted = g.project(POINTS @ g.tilt(0.01, 0.004).T, INTRINSICS)
    image = np.column_stack([g.project(POINTS, INTRINSICS), np.ones(len(POINTS))])
    moved = image @ g.tilt_homography(INTRINSICS, 0.01, 0.004).T
    np.testing.assert_allclose(moved[:, :2] / moved[:, 2:], tilted, atol=1e-9)


def test_a_camera_that_looks_down_sees_the_horizon_higher():
    horizon = np.array([0.0, 0.0, 1.0])
    assert g.project(g.tilt(0.02) @ horizon, INTRINSICS)[1] < g.project(horizon, INTRINSICS)[1]


def test_the_ground_matrix_agrees_with_points_in_space():
    camera = driving_camera(120.0, -340.0, 0.7)
    flat = np.column_stack([POINTS[:, 0], np.zeros(len(POINTS)), POINTS[:, 2]])
    world = g.transform(camera, flat)[:, :2]
    points = np.column_stack([POINTS[:, [0, 2]], np.ones(len(POINTS))])
    np.testing.assert_allclose((points @ g.ground_matrix(camera).T)[:, :2], world, atol=1e-9)


def test_the_gravity_plane_is_rigid_whatever_the_tilt():
    camera = driving_camera(3.0, 4.0, 1.1)
    camera[:3, :3] = camera[:3, :3] @ g.tilt(0.3, 0.2).T
    matrix = g.ground_matrix(camera, "gravity")
    np.testing.assert_allclose(matrix[:2, :2].T @ matrix[:2, :2], np.eye(2), atol=1e-12)
    axis = camera[:2, 2] / np.linalg.norm(camera[:2, 2])
    np.testing.assert_allclose(matrix[:2, 1], axis, atol=1e-12)


@pytest.mark.parametrize("plane", ["camera", "gravity"])
def test_motions_compose(plane):
    a, b, c = (driving_camera(2500 + 5 * n, 1800 + 0.4 * n, 0.1 * n) for n in range(3))
    composed = g.ground_motion(a, b, plane) @ g.ground_motion(b, c, plane)
    np.testing.assert_allclose(composed, g.ground_motion(a, c, plane), atol=1e-9)


def test_poses_invert():
    matrix = some_pose(1)
    np.testing.assert_allclose(matrix @ g.inverse_pose(matrix), np.eye(4), atol=1e-9)


@pytest.mark.parametrize("yaw_rate", [0.0, 1e-6, 0.3, -1.2])
def test_odometry_is_the_limit_of_many_small_steps(yaw_rate):
    speed, seconds, count = 5.0, 1.5, 3000
    small = g.integrate_odometry(speed, yaw_rate, seconds / count)
    many = np.linalg.matrix_power(small, count)
    np.testing.assert_allclose(g.integrate_odometry(speed, yaw_rate, seconds), many, atol=1e-8)


def test_the_ground_row_is_exact_straight_ahead():
    pitch, height = 0.02, 1.4
    camera_to_ground = np.eye(4)
    camera_to_ground[:3, :3] = np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]) @ g.tilt(pitch).T
    camera_to_ground[2, 3] = height
    for depth in (5.0, 12.0, 45.0):
        seen = g.transform(g.inverse_pose(camera_to_ground), np.array([depth, 0.0, 0.0]))
        row = g.ground_row(depth, INTRINSICS, height, pitch)
        assert g.project(seen, INTRINSICS)[1] == pytest.approx(float(row), abs=1e-9)


def test_poses_between_two_are_halfway():
    first, last = driving_camera(0, 0, 0.0), driving_camera(2, 1, 0.4)
    middle = g.interpolate_pose([0.0, 1.0], [first, last], 0.5)
    # Half of the turn from the first to the last is the turn from the middle to the last.
    np.testing.assert_allclose(middle[:3, :3] @ first[:3, :3].T, last[:3, :3] @ middle[:3, :3].T, atol=1e-9)
    np.testing.assert_allclose(middle[:3, 3], (first[:3, 3] + last[:3, 3]) / 2)
    with pytest.raises(ShapeError, match="outside"):
        g.interpolate_pose([0.0, 1.0], [first, last], 1.5)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (INTRINSICS, "another image size"),
        (np.eye(2), "no camera matrix"),
        (np.diag([-1.0, 1.0, 1.0]), "positive focal"),
        (np.full((3, 3), np.nan), "no camera matrix"),
    ],
)
def test_intrinsics_that_cannot_belong_to_a_picture_are_refused(matrix, message):
    with pytest.raises(ShapeError, match=message):
        g.check_intrinsics(matrix, 800, 448, where="test")


def test_a_quaternion_of_zeros_is_refused():
    with pytest.raises(ShapeError, match="no rotation"):
        g.rotation_matrix([0, 0, 0, 0])


def test_a_centre_far_from_the_middle_is_pointed_out_for_it_may_belong_to_a_smaller_image():
    with pytest.warns(UserWarning, match="another image size"):
        g.check_intrinsics([[500.0, 0, 240], [0, 500, 135], [0, 0, 1]], 640, 360, where="test")
    g.check_intrinsics([[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]], 1600, 900, where="test")


@pytest.mark.parametrize(
    ("change", "message"),
    [((0, 0, 2.0), "is no pose"), ((3, 0, 1.0), "is no pose"), ((2, 3, 0.0), "height of 0 m"), ((2, 3, -1.0), "-1 m")],
)
def test_what_is_no_pose_of_a_camera_is_refused(change, message):
    row, column, value = change
    matrix = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(g.check_camera(matrix, where="test"), matrix)
    matrix[row, column] = value
    with pytest.raises(ShapeError, match=message):
        g.check_camera(matrix, where="test")


@pytest.mark.parametrize("degrees", [0, -10, 180, 200])
def test_impossible_fields_of_view_are_refused(degrees):
    with pytest.raises(ShapeError, match="expected more than 0 and less than 180"):
        g.intrinsics_of_field_of_view(640, 480, np.radians(degrees))
