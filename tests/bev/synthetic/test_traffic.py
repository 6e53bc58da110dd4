import numpy as np
import pytest

from featherweight.bev.synthetic.streets import lay_streets
from featherweight.bev.synthetic.traffic import SCENERY, SIZES, Thing, populate

shapely = pytest.importorskip("shapely")


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(2)
    streets = lay_streets(random, (0.0, 0.0), 120.0)
    return streets, populate(random, streets, 8.0, 120.0)


def test_every_kind_of_object_is_somewhere(world):
    _, things = world
    found = {thing.category for thing in things}
    assert {"vehicle.car", "human.pedestrian.adult", "vehicle.bicycle", *SCENERY} <= found <= {*SIZES, *SCENERY}
    assert not any(thing.is_annotated for thing in things if thing.category in SCENERY)


def test_moving_things_move_along_the_road_and_standing_ones_stay(world):
    streets, things = world
    for thing in things:
        first, later = np.array(thing.at(streets, 0.0)), np.array(thing.at(streets, 2.0))
        if thing.speed is None:
            assert np.array_equal(first, later)
        elif thing.category == "vehicle.car" and 20 < thing.place[0] < streets.path.length - 20:
            inner = abs(abs(thing.speed) * 2 - np.hypot(*(later - first)[:2]))
            assert inner < 2.5, "a bend is shorter or longer on its two sides"


def test_houses_and_trees_leave_the_ground_free(world):
    from featherweight.bev.synthetic.streets import rectangle

    streets, things = world
    ground = shapely.unary_union([shape for layer in streets.layers.values() for shape in layer])
    for thing in things:
        if thing.category in ("building", "trunk"):
            width, length, _ = thing.size
            assert not rectangle(*thing.place, length, width).intersects(ground)


def test_sizes_are_near_those_of_their_category():
    thing = Thing("vehicle.car", (1.9, 4.6, 1.7), (0, 0, 0), (0, 0, 0))
    assert thing.is_annotated
    assert all(0 < side < 15 for size in SIZES.values() for side in size)
