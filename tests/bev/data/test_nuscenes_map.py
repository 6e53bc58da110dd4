import json

import numpy as np
import pytest

from featherweight.bev.data.nuscenes_map import read_map
from featherweight.errors import CheckpointError


def content():
    nodes = [
        {"token": str(n), "x": float(x), "y": float(y)} for n, (x, y) in enumerate([(0, 0), (9, 0), (9, 9), (0, 9)])
    ]
    polygon = {"token": "p", "exterior_node_tokens": ["0", "1", "2", "3"], "holes": [{"node_tokens": []}]}
    return {
        "node": nodes,
        "polygon": [polygon],
        "drivable_area": [{"token": "d", "polygon_tokens": ["p"]}],
        "ped_crossing": [{"token": "c", "polygon_token": None}],
        "walkway": [{"token": "w", "polygon_token": "p"}],
        "carpark_area": [],
    }


def test_polygons_go_to_their_classes_and_null_ones_are_left_out(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(content()))
    with pytest.warns(UserWarning, match="1 of 2 polygons are missing"):
        found = read_map(path)
    assert {name: len(polygons) for name, polygons in found.items()} == {
        "drivable_area": 1,
        "ped_crossing": 0,
        "walkway": 1,
        "carpark": 0,
    }
    np.testing.assert_array_equal(found["walkway"].polygons[0][0], [(0, 0), (9, 0), (9, 9), (0, 9)])
    assert len(found["walkway"].polygons[0]) == 1, "a hole without nodes is no hole"


@pytest.mark.parametrize("damage", ["{", "[]", '{"node": []}', '{"version": "1.0", "node": []}'])
def test_damaged_maps_are_refused(tmp_path, damage):
    path = tmp_path / "map.json"
    path.write_text(damage)
    with pytest.raises(CheckpointError, match="cannot be read as a map"):
        read_map(path)
