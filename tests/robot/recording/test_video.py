"""Videos: every picture at its time, whatever the encoder's speed."""

import time

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.recording import video
from featherweight.robot.recording.video import VideoWriter, choose_encoder, count_pictures, read_pictures

pytest.importorskip("av")


def gray(level):
    return np.full((32, 48, 3), level, dtype=np.uint8)


@pytest.mark.parametrize("encoder", sorted(video.ENCODERS))
def test_pictures_come_back_at_their_times(tmp_path, encoder):
    if encoder != choose_encoder()[0]:
        try:
            video.import_av().codec.Codec(encoder, "w")
        except ValueError:
            pytest.skip(f"no {encoder} here")
    writer = VideoWriter(tmp_path / "a.mp4", 30, 32, 48, encoder)
    for i in range(20):
        writer.add(gray(10 * i))
    described = writer.close()
    assert count_pictures(tmp_path / "a.mp4") == 20 and described["count"] == [2]
    shown = read_pictures(tmp_path / "a.mp4", [15 / 30, 3 / 30, 4 / 30])
    assert [abs(int(picture.mean()) - 10 * i) < 12 for picture, i in zip(shown, (15, 3, 4), strict=True)] == [True] * 3
    with pytest.raises(ConfigError, match="no picture within 0.0001 s of 0.1100 s"):
        read_pictures(tmp_path / "a.mp4", [0.11])


def test_a_slow_encoder_repeats_pictures_and_keeps_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "WAITING", 2)
    encode = VideoWriter._encode
    monkeypatch.setattr(VideoWriter, "_encode", lambda self, *a: (time.sleep(0.01), encode(self, *a)))
    writer = VideoWriter(tmp_path / "a.mp4", 30, 32, 48)
    for i in range(40):
        writer.add(gray(5 * i))
    writer.close()
    assert writer.repeated > 20 and count_pictures(tmp_path / "a.mp4") == 40


def test_a_damaged_video_is_one_sentence(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ConfigError, match="cannot be read"):
        count_pictures(tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="it is not there"):
        read_pictures(tmp_path / "b.mp4", [0.0])
