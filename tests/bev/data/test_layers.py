import numpy as np
import pytest

from featherweight.bev.data.layers import Polygons, Raster, footprint, to_cells
from featherweight.bev.geometry import ground_matrix, planar_pose
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.streaming import level_camera

shapely = pytest.importorskip("shapely")
GRID = BEVGridConfig(anchor="center")
TO_WORLD = ground_matrix(planar_pose(100, 200, 0.5) @ level_camera(1.5))


def ahead(near: float, far: float, half: float) -> np.ndarray:
    """A rectangle before the camera, in the world."""
    corners = np.array([(-half, near, 1), (half, near, 1), (half, far, 1), (-half, far, 1)])
    return (corners @ TO_WORLD.T)[:, :2]


def test_the_footprint_is_where_the_cells_are():
    corners = to_cells(footprint(GRID, TO_WORLD), GRID, TO_WORLD)
    np.testing.assert_allclose(corners[0], (-0.5, -0.5), atol=1e-6)
    np.testing.assert_allclose(corners[2], (199.5, 195.5), atol=1e-6)


def test_a_polygon_with_a_hole_fills_its_cells():
    layer = Polygons([[ahead(5, 25, 5), ahead(10, 20, 2)]])
    assert layer.mask(GRID, TO_WORLD, "exact").sum() == 40 * 80 - 16 * 40
    published = layer.mask(GRID.model_copy(update={"anchor": "corner"}), TO_WORLD, "pon")
    assert published.sum() == 41 * 81 - 17 * 41


def test_polygons_out_of_sight_fill_nothing():
    layer = Polygons([[ahead(60, 80, 5)]])
    assert not layer.mask(GRID, TO_WORLD, "exact").any() and not layer.mask(GRID, TO_WORLD, "pon").any()
    assert not Polygons([]).mask(GRID, TO_WORLD, "exact").any()


def test_a_picture_of_the_ground_fills_the_cells_of_its_pixels():
    values = np.zeros((300, 200), bool)
    values[:, 105:] = True
    world_to_pixel = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    mask = Raster(values, world_to_pixel).mask(GRID, TO_WORLD, "exact")
    world = GRID.points() @ TO_WORLD.T
    np.testing.assert_array_equal(mask, world[..., 0] >= 104.5)


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
