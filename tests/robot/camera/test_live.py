"""Cameras that really send: pictures and their times, cameras that go and come back, wrong ones."""

import os
import signal
import socket
import time

import pytest
from robot_camera import film, free_port, sender, wait_for

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.camera.live import LiveCamera
from featherweight.robot.camera.source import CameraConfig


@pytest.fixture
def open_camera():
    """Opens cameras and closes them at the end."""
    opened = []

    def start(source, **options):
        opened.append(LiveCamera("front", CameraConfig(source=str(source), **options)))
        return opened[-1].start()

    yield start
    for camera in opened:
        camera.close()


def test_the_newest_picture_is_at_hand_with_its_time(open_camera):
    camera = open_camera("test", width_px=320, height_px=240)
    assert camera.size_px == (240, 320) and camera.trouble == ""
    first = camera.newest
    assert wait_for(lambda: camera.newest.number >= first.number + 25)
    newest = camera.newest
    # ffmpeg hurries through its first half second; 25 pictures of 30 a second are never later than a second apart.
    assert first.picture.shape == (240, 320, 3) and (newest.picture != first.picture).any()
    assert 0.2 < newest.time_s - first.time_s < 2 and time.monotonic() - newest.time_s < 0.5
    assert 8 < newest.picture.std() and camera.fresh() is not None


def test_a_camera_whose_ffmpeg_is_killed_says_so_and_comes_back(open_camera):
    camera = open_camera("test")
    os.kill(camera.pid, signal.SIGKILL)
    assert wait_for(lambda: camera.fresh() is None, 3) and "camera front gives no picture" in camera.trouble
    assert wait_for(lambda: camera.fresh() is not None) and camera.restarts == 1 and camera.trouble == ""


def test_a_camera_of_the_network_is_pulled_out_and_plugged_in(open_camera):
    address = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    with sender(address):
        camera = open_camera(address)
        assert camera.size_px == (240, 320)
    assert wait_for(lambda: camera.fresh() is None, 3) and "it is silent" in camera.trouble
    with sender(address):
        assert wait_for(lambda: camera.fresh() is not None, 15)


def test_a_camera_over_http_gives_pictures_and_one_of_another_size_is_refused_until_it_is_back(open_camera):
    address = f"http://127.0.0.1:{free_port()}/video"
    with sender(address):
        time.sleep(0.5)  # until it listens
        camera = open_camera(address)
    assert wait_for(lambda: camera.fresh() is None, 3)
    with sender(address, size="640x480"):
        assert wait_for(lambda: "its pictures have 640x480 now, and had 320x240" in camera.trouble)
        assert camera.newest.picture.shape == (240, 320, 3)
    with sender(address):
        assert wait_for(lambda: camera.fresh() is not None, 15)


def test_pictures_whose_size_changes_in_the_stream_are_never_stretched(open_camera, tmp_path):
    camera = open_camera(film(tmp_path / "film.ts", "320x240", "640x480", seconds=0.6))
    assert wait_for(lambda: "its pictures have 640x480 now" in camera.trouble)
    assert camera.newest.picture.shape == (240, 320, 3)


def test_odd_pictures_lose_a_row_and_a_column(open_camera, tmp_path):
    (tmp_path / "film").mkdir()
    from PIL import Image

    Image.new("RGB", (65, 33), (200, 30, 30)).save(tmp_path / "film.png")
    assert open_camera(tmp_path / "film.png").size_px == (32, 64)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("/dev/video97", {}, DeviceError, "Cannot open video device /dev/video97: No such file.*expected a camera"),
        ("http://127.0.0.1:9/video", {}, DeviceError, "refused.*Look at address or file"),
        (
            "FILM",
            {"width_px": 640, "height_px": 480},
            ConfigError,
            "size=640x480 is not what .* gives; expected 320x240",
        ),
        ("FILM", {"fps": 60}, ConfigError, "rate=60 is not what .* gives; expected about 1. pictures a second"),
        (__file__, {}, DeviceError, "gives no pictures"),
    ],
)
def test_what_a_camera_does_not_give_is_one_sentence(source, options, error, message, open_camera, tmp_path):
    path = film(tmp_path / "film.ts", "320x240", fps=15, seconds=4) if source == "FILM" else source
    with pytest.raises(error, match=message):
        open_camera(path, **options)


@pytest.mark.slow  # six seconds of real time
def test_a_slow_camera_is_fresh_for_three_of_its_periods(open_camera, tmp_path):
    camera = open_camera(film(tmp_path / "film.ts", "64x48", fps=2, seconds=10), max_age_s=0.1)
    assert wait_for(lambda: camera.newest.number >= 4)
    assert wait_for(lambda: camera.period_s > 0.3, 5)
    for _ in range(30):
        assert camera.fresh() is not None
        time.sleep(0.05)
