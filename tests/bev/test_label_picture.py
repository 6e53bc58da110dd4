import numpy as np
import pytest
from PIL import Image

from featherweight.bev.data.classes import NUSCENES
from featherweight.bev.label_picture import bits_of, class_shares, draw_file, draw_frame, grid_of
from featherweight.bev.pictures import COLORS
from featherweight.errors import ConfigError


def count(picture, name: str) -> int:
    return int((np.asarray(picture) == COLORS[name]).all(axis=-1).sum())


def test_a_file_of_bits_is_drawn_as_the_map_of_its_frame(index, tmp_path):
    bits = bits_of(index, index.frames[0], grid_of("pon"), "pon")
    drawn = draw_frame(index, index.frames[0], "pon")
    for name, values in (("16.png", bits), ("32.tif", bits.astype(np.int32))):
        Image.fromarray(values).save(tmp_path / name)
        found = draw_file(tmp_path / name, NUSCENES)
        for kind in ("drivable_area", "walkway"):
            assert count(found, kind) == pytest.approx(count(drawn, kind), rel=0.02), "the overlay blends its colours"


def test_pictures_that_are_no_labels_are_refused(tmp_path):
    Image.new("RGB", (200, 196)).save(tmp_path / "photo.png")
    Image.new("L", (30, 20)).save(tmp_path / "small.png")
    for name in ("photo.png", "small.png"):
        with pytest.raises(ConfigError, match="expected one whole number for each of 200 x 196 or 100 x 98 cells"):
            draw_file(tmp_path / name, NUSCENES)


def test_shares_are_those_of_seen_cells(index):
    frames = index.frames[:2]
    pairs = [index.classes.split_bits(bits_of(index, frame, grid_of("exact"), "exact")) for frame in frames]
    seen = sum(int(one.sum()) for _, one in pairs)
    road = sum(int((masks[0] & one).sum()) for masks, one in pairs)
    shares = class_shares(index, frames, "exact")
    assert list(shares) == list(NUSCENES.names) and shares["drivable_area"] == pytest.approx(road / seen)
