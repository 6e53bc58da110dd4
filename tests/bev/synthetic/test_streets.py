import math

import numpy as np
import pytest

from featherweight.bev.synthetic.streets import lay_streets, rectangle

shapely = pytest.importorskip("shapely")


@pytest.fixture(scope="module", params=range(4))
def streets(request):
    return lay_streets(np.random.default_rng(request.param), (10.0, 20.0), 100.0)


def test_the_path_is_measured_in_metres_and_goes_straight_on_behind_its_ends(streets):
    steps = np.linalg.norm(np.diff(streets.path.points, axis=0), axis=1)
    np.testing.assert_allclose(steps, 1.0, atol=1e-9)
    x, y, heading = streets.path.place(-5.0)
    first = streets.path.points[0]
    assert math.dist((x, y), first) == pytest.approx(5.0) and heading == streets.path.headings[0]


def test_lateral_places_count_to_the_left(streets):
    x, y, heading = streets.path.place(30.0)
    left = np.array(streets.path.place(30.0, 2.0)[:2]) - (x, y)
    assert np.cross([math.cos(heading), math.sin(heading), 0], [*left, 0])[2] == pytest.approx(2.0)


def test_layers_are_valid_and_lie_where_they_belong(streets):
    assert all(shape.is_valid and shape.area > 0 for layer in streets.layers.values() for shape in layer)
    road = shapely.unary_union(streets.layers["drivable_area"])
    walkway = shapely.unary_union(streets.layers["walkway"])
    assert road.intersection(walkway).area < 1e-6 * road.area
    assert all(road.buffer(0.5).contains(crossing) for crossing in streets.layers["ped_crossing"])
    assert any(shape.interiors for shape in streets.layers["drivable_area"]), "islands are holes"
    assert all(road.buffer(0.01).contains(shapely.Point(streets.path.place(s)[:2])) for s in range(10, 90, 20))


def test_a_rectangle_has_its_length_along_its_heading():
    shape = rectangle(1.0, 2.0, 0.3, 4.0, 2.0)
    assert shape.area == pytest.approx(8.0) and shape.contains(
        shapely.Point(1 + 1.9 * math.cos(0.3), 2 + 1.9 * math.sin(0.3))
    )
