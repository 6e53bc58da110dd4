import subprocess
import venv

import numpy as np
import pytest

from featherweight.bev.raster import fill_convex, fill_exact

shapely = pytest.importorskip("shapely")
W = [(2, 2), (8, 20), (14, 2), (20, 20), (26, 2), (30, 30), (2, 30)]


def painted(ring, size: int = 40) -> int:
    canvas = np.zeros((size, size), np.uint8)
    fill_convex(canvas, np.array(ring), 1)
    return int(canvas.sum())


@pytest.mark.parametrize(
    ("ring", "cells"),
    [
        ([(2, 2), (30, 2), (30, 10), (10, 10), (10, 30), (2, 30)], 441),
        ([(2, 2), (8, 2), (8, 24), (24, 24), (24, 2), (30, 2), (30, 30), (2, 30)], 406),
        ([(2, 30), (8, 30), (8, 8), (24, 8), (24, 30), (30, 30), (30, 2), (2, 2)], 826),
        (W, 441),
        (W[::-1], 468),
        ([(5, 5), (8, 5), (8, 7), (5, 7)], 12),
        ([(3, 3)] * 4, 1),
        ([(-5, -5), (4, -5), (4, 4), (-5, 4)], 25),
        ([(50, 50), (60, 50), (60, 60)], 0),
        ([], 0),
    ],
)
def test_the_published_fill_paints_as_many_cells_as_measured(ring, cells):
    assert painted(ring) == cells


def test_lines_that_leave_the_canvas_stay_on_it():
    numbers = np.random.default_rng(3)
    for _ in range(200):
        canvas = np.zeros((30, 20), np.uint8)
        fill_convex(canvas, numbers.integers(-300, 300, size=(int(numbers.integers(1, 7)), 2)), 1)


def star(numbers, points: int) -> np.ndarray:
    angle = np.sort(numbers.uniform(0, 2 * np.pi, points))
    radius = numbers.uniform(8, 45, points)
    return np.column_stack([50 + radius * np.cos(angle), 50 + radius * np.sin(angle)])


def test_exact_cells_are_those_whose_anchor_lies_inside():
    numbers = np.random.default_rng(1)
    column, row = np.meshgrid(np.arange(100), np.arange(100))
    for _ in range(20):
        outer, hole = star(numbers, 9), 50 + 4.3 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        polygon = shapely.Polygon(outer).difference(shapely.Polygon(hole))
        rings = [
            np.array(r.coords)
            for part in getattr(polygon, "geoms", [polygon])
            for r in (part.exterior, *part.interiors)
        ]
        inside = shapely.contains_xy(polygon, column, row)
        np.testing.assert_array_equal(fill_exact((100, 100), rings), inside)


def test_the_exact_area_is_that_of_the_polygon():
    numbers = np.random.default_rng(2)
    for _ in range(5):
        ring = star(numbers, 12)
        cells = fill_exact((2000, 2000), [ring * 20]).sum() / 400
        assert cells == pytest.approx(shapely.Polygon(ring).area, rel=0.01)


def test_neighbours_share_no_cell_and_leave_none_out():
    left = fill_exact((10, 10), [np.array([(0, 0), (5, 0), (5, 10), (0, 10)])])
    right = fill_exact((10, 10), [np.array([(5, 0), (10, 0), (10, 10), (5, 10)])])
    assert (left ^ right).all() and not (left & right).any()


def test_a_polygon_beside_the_grid_fills_nothing():
    assert not fill_exact((10, 10), [np.array([(20, 0), (30, 0), (30, 10)])]).any()
    assert not fill_exact((10, 10), [np.array([(0, 20), (5, 20), (5, 30)])]).any()
    assert fill_exact((10, 10), [np.array([(-90, -90), (90, -90), (90, 90), (-90, 90)])]).all()


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((4.62, 1.95), 1.18), ((11.2, 2.94), 1.10), ((0.73, 0.67), 1.81), ((0.41, 0.41), 2.56), ((0.50, 2.53), 1.61)],
)
def test_published_labels_inflate_objects_as_measured(size, ratio):
    numbers = np.random.default_rng(5)
    drawn = 0
    for _ in range(400):
        angle, middle = numbers.uniform(0, 2 * np.pi), numbers.uniform(10, 40, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2 * size @ turn.T + middle
        canvas = np.zeros((200, 200), np.uint8)
        fill_convex(canvas, np.round(corners / 0.25).astype(int), 1)
        drawn += canvas.sum() * 0.25**2
    assert drawn / 400 / np.prod(size) == pytest.approx(ratio, rel=0.05)


_WITH_OPENCV = """
import sys
import cv2, numpy as np
given = np.load(sys.argv[1])
counts, points = given["counts"], given["points"]
canvases = np.zeros((len(counts), 60, 80), np.uint8)
for canvas, ring in zip(canvases, np.split(points, np.cumsum(counts)[:-1])):
    cv2.fillConvexPoly(canvas, ring.astype(np.int32), 1)
np.save(sys.argv[2], canvases)
print(cv2.__version__)
"""


def any_ring(numbers, kind: int) -> np.ndarray:
    """Return a ring of one of eight kinds: boxes, stars, tangles, far outside, slivers, collapsed, closed, repeated."""
    middle = numbers.uniform(0, 80, 2)
    if kind == 0:
        angle, size = numbers.uniform(0, 2 * np.pi), numbers.uniform(1, 40, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2 * size @ turn.T + middle
    if kind == 1:
        return star(numbers, int(numbers.integers(3, 14))) - 15
    if kind == 2:
        return numbers.uniform(-10, 90, (int(numbers.integers(3, 10)), 2))
    if kind == 3:
        return numbers.uniform(-4000, 4000, (int(numbers.integers(3, 8)), 2))
    if kind == 4:
        return middle + numbers.uniform(-30, 30, (3, 2)) * [1, 0.05]
    if kind == 5:
        return middle + numbers.uniform(0, 1.5, (int(numbers.integers(1, 5)), 2))
    ring = star(numbers, int(numbers.integers(3, 9)))
    return np.concatenate([ring, ring[:1]]) if kind == 6 else np.repeat(ring, 2, axis=0)


@pytest.mark.slow
def test_the_published_fill_is_that_of_opencv_pixel_for_pixel(tmp_path):
    """4,000 polygons in an environment of its own, since OpenCV is no dependency; needs a package index."""
    python = tmp_path / "env" / "bin" / "python"
    venv.create(tmp_path / "env", with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "opencv-python-headless"]
    if subprocess.run(install, check=False).returncode:
        pytest.skip("opencv-python-headless cannot be installed here")
    numbers = np.random.default_rng(7)
    rings = [np.round(any_ring(numbers, number % 8)).astype(np.int64) for number in range(4000)]
    np.savez(tmp_path / "rings.npz", points=np.concatenate(rings), counts=[len(ring) for ring in rings])
    (tmp_path / "fill.py").write_text(_WITH_OPENCV)
    subprocess.run([python, "fill.py", "rings.npz", "truth.npy"], cwd=tmp_path, check=True)
    different = []
    for number, (ring, truth) in enumerate(zip(rings, np.load(tmp_path / "truth.npy"), strict=True)):
        canvas = np.zeros((60, 80), np.uint8)
        fill_convex(canvas, ring, 1)
        if not np.array_equal(canvas, truth):
            different.append((number % 8, ring.tolist()))
    assert not different, different[:3]
