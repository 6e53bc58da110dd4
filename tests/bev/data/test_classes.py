import numpy as np
import pytest

from featherweight.bev.data.classes import NUSCENES, find_classes
from featherweight.errors import ConfigError


def test_categories_go_where_the_published_labels_put_them():
    assert NUSCENES.names[NUSCENES.class_of("vehicle.bus.bendy")] == "bus"
    assert NUSCENES.names[NUSCENES.class_of("human.pedestrian.police_officer")] == "pedestrian"
    assert NUSCENES.class_of("human.pedestrian.stroller") == NUSCENES.ignore_bit == 14
    assert len(NUSCENES.priors) == len(NUSCENES.names)


def test_bits_split_into_masks():
    masks, seen = NUSCENES.split_bits(np.array([[0b1, 0b10001], [1 << 14, 0]], np.uint16))
    assert masks[0].tolist() == [[True, True], [False, False]]
    assert masks[4].tolist() == [[False, True], [False, False]]
    assert seen.tolist() == [[True, True], [False, True]]


def test_an_unknown_list_is_refused():
    with pytest.raises(ConfigError, match="no list of classes"):
        find_classes("pon13")
