import json

import numpy as np
import pytest
import torch
from PIL import Image

from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.pictures import COLORS
from featherweight.bev.video import draw_video
from featherweight.errors import ConfigError

K = np.array([[177.0, 0, 112], [0, 177, 64], [0, 0, 1]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", memory_length=1)).save_pretrained(folder)
    FocusBEVImageProcessor((128, 224)).save_pretrained(folder)
    return folder


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (224, 128), (60 * number, 80, 80)).save(folder / f"{number:03d}.png")
    return folder


def test_a_drive_becomes_a_moving_picture_with_as_many_frames(checkpoint, frames, tmp_path):
    poses = tmp_path / "poses.jsonl"
    poses.write_text("\n".join(json.dumps({"t": n / 2, "x": 2.0 * n, "y": 0, "yaw": 0}) for n in range(3)))
    path = draw_video(checkpoint, frames, tmp_path / "drive.gif", intrinsics=K, poses=poses)
    with Image.open(path) as image:
        assert image.n_frames == 3
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 24)}
    assert {COLORS["truck"], COLORS["bus"], COLORS["pedestrian"]} <= colors, "the legend keeps the colours of classes"


def test_a_drive_becomes_a_film(checkpoint, frames, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    path = draw_video(checkpoint, frames, tmp_path / "drive.mp4", intrinsics=K)
    assert path.stat().st_size > 1000 and b"ftyp" in path.read_bytes()[:32]


def test_what_does_not_fit_is_named(checkpoint, frames, tmp_path):
    (tmp_path / "empty").mkdir()
    poses = tmp_path / "poses.jsonl"
    poses.write_text('{"t": 0, "x": 0, "y": 0, "yaw": 0}\n')
    with pytest.raises(ConfigError, match="1 lines for 3 pictures"):
        draw_video(checkpoint, frames, tmp_path / "a.gif", intrinsics=K, poses=poses)
    poses.write_text('{"t": 0}\n')
    with pytest.raises(ConfigError, match="line 1"):
        draw_video(checkpoint, frames, tmp_path / "a.gif", intrinsics=K, poses=poses)
    with pytest.raises(ConfigError, match="holds no picture"):
        draw_video(checkpoint, tmp_path / "empty", tmp_path / "a.gif", intrinsics=K)
    with pytest.raises(ConfigError, match="no known suffix"):
        draw_video(checkpoint, frames, tmp_path / "a.avi", intrinsics=K)
