import json

import numpy as np
import pytest
import torch
from PIL import Image

from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.prediction import guess_intrinsics, load, read_calibration, segment
from featherweight.errors import CheckpointError, ConfigError, ShapeError

K = [[600.0, 0, 320], [0, 600.0, 240], [0, 0, 1]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", use_cycle=True)).save_pretrained(folder / "model")
    FocusBEVImageProcessor((128, 224)).save_pretrained(folder / "model")
    return folder


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (640, 480), (90, 90, 90)).save(path)
    return path


def test_a_photo_of_any_calibrated_camera_becomes_a_map(checkpoint, photo, tmp_path):
    (tmp_path / "K.json").write_text(json.dumps({"K": K, "image_size": [640, 480]}))
    found = segment(photo, checkpoint, intrinsics=tmp_path / "K.json")
    assert found.probabilities.shape == (14, 98, 100) and found.names[4] == "car"
    assert found.relevance is not None and found.picture.width > found.camera.width / 2
    same = segment(photo, checkpoint, intrinsics=np.array(K))
    np.testing.assert_array_equal(found.probabilities, same.probabilities)


def test_a_picture_scaled_evenly_takes_its_calibration_along(checkpoint, tmp_path):
    Image.new("RGB", (320, 240)).save(tmp_path / "half.png")
    (tmp_path / "K.json").write_text(json.dumps({"K": K, "image_size": [640, 480]}))
    segment(tmp_path / "half.png", checkpoint, intrinsics=tmp_path / "K.json")
    Image.new("RGB", (320, 200)).save(tmp_path / "cut.png")
    with pytest.raises(ConfigError, match="another shape"):
        segment(tmp_path / "cut.png", checkpoint, intrinsics=tmp_path / "K.json")


def test_without_intrinsics_no_camera_is_assumed(checkpoint, photo):
    with pytest.raises(ConfigError, match="--hfov"):
        segment(photo, checkpoint)
    segment(photo, checkpoint, hfov_deg=60)


def test_the_focal_length_of_a_picture_counts(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[41989] = 36
    Image.new("RGB", (640, 480)).save(tmp_path / "exif.jpg", exif=exif)
    with Image.open(tmp_path / "exif.jpg") as image:
        matrix = guess_intrinsics(image)
    assert matrix[0, 0] == pytest.approx(640) and matrix[0, 2] == 320


@pytest.mark.parametrize("text", ["{", "{}", '{"K": [1, 2]}', "[]"])
def test_damaged_calibrations_are_refused(tmp_path, text):
    (tmp_path / "K.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read as a calibration"):
        read_calibration(tmp_path / "K.json")


def test_intrinsics_of_another_size_are_refused(checkpoint, photo):
    with pytest.raises(ShapeError, match="another image size"):
        segment(photo, checkpoint, intrinsics=np.array([[1266.0, 0, 816], [0, 1266, 491], [0, 0, 1]]))


def test_folders_without_a_network_of_this_kind_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no trained network"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="is a 'llama'"):
        load(tmp_path)


def test_a_height_of_nothing_is_refused_and_another_one_counts(checkpoint, photo):
    with pytest.raises(ShapeError, match="height of 0 m"):
        segment(photo, checkpoint, intrinsics=np.array(K), camera_height=0)
    low, high = (segment(photo, checkpoint, intrinsics=np.array(K), camera_height=height) for height in (0.4, 1.5))
    assert np.abs(low.probabilities - high.probabilities).max() > 1e-3
