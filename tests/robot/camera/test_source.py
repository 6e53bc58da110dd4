"""What ffmpeg is asked for on each system, and what it says that there is."""

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.camera.source import (
    CameraConfig,
    CameraInfo,
    find_ffmpeg,
    input_arguments,
    is_device,
    known_cameras,
    list_cameras,
    parse_cameras,
)

AVFOUNDATION = """[AVFoundation indev @ 0x7f] AVFoundation video devices:
[AVFoundation indev @ 0x7f] [0] FaceTime HD Camera
[AVFoundation indev @ 0x7f] [1] USB Camera
[AVFoundation indev @ 0x7f] AVFoundation audio devices:
[AVFoundation indev @ 0x7f] [0] Microphone
"""
DSHOW = """[dshow @ 000001] "USB Camera" (video)
[dshow @ 000001]   Alternative name "@device_pnp_\\\\?\\usb#vid_046d"
[dshow @ 000001] "Microphone" (audio)
"""
V4L2 = """[video4linux2,v4l2 @ 0x55] Raw       :     yuyv422 :           YUYV 4:2:2 : 640x480 320x240
[video4linux2,v4l2 @ 0x55] Compressed:       mjpeg :          Motion-JPEG : 1280x720 640x480
/dev/video0: Immediate exit requested
"""


@pytest.mark.parametrize(
    ("platform", "source", "words"),
    [
        (
            "linux",
            "/dev/video2",
            "-fflags nobuffer -f v4l2 -input_format mjpeg -framerate 15 -video_size 640x480 -i /dev/video2",
        ),
        ("linux", "2", "-fflags nobuffer -f v4l2 -input_format mjpeg -framerate 15 -video_size 640x480 -i /dev/video2"),
        ("darwin", "USB Camera", "-f avfoundation -framerate 15 -video_size 640x480 -pixel_format mjpeg -i USB Camera"),
        (
            "win32",
            "USB Camera",
            "-f dshow -rtbufsize 64M -framerate 15 -video_size 640x480 -vcodec mjpeg -i video=USB Camera",
        ),
        ("linux", "test", "-re -f lavfi -i testsrc2=size=640x480:rate=15"),
    ],
)
def test_each_system_has_its_own_words(platform, source, words):
    config = CameraConfig(source=source, width_px=640, height_px=480, fps=15, input_format="mjpeg")
    assert " ".join(input_arguments(config, platform)) == words


def test_addresses_and_files_are_no_devices(tmp_path):
    (tmp_path / "film.ts").write_bytes(b"x")
    assert input_arguments(CameraConfig(source=str(tmp_path / "film.ts")))[:3] == ["-re", "-stream_loop", "-1"]
    assert "-rw_timeout" in input_arguments(CameraConfig(source="http://10.0.0.7/video"))
    assert "-framerate" in input_arguments(CameraConfig(source="0"), "darwin")  # by itself it would ask for 29.97
    assert [is_device(one) for one in ("/dev/video0", "test", "rtsp://x", str(tmp_path / "film.ts"))] == [
        True,
        *3 * [False],
    ]


def test_cameras_are_listed_on_each_system(tmp_path):
    found = list_cameras("darwin", lambda _: AVFOUNDATION)
    assert [one.source for one in found] == ["FaceTime HD Camera", "USB Camera"]
    assert list_cameras("win32", lambda _: DSHOW) == [CameraInfo("USB Camera", "DirectShow")]
    devices, classes = tmp_path / "dev", tmp_path / "class"
    devices.mkdir()
    for number, index in ((0, 0), (1, 1), (10, 0), (2, 0)):
        (devices / f"video{number}").touch()
        (classes / f"video{number}").mkdir(parents=True)
        (classes / f"video{number}" / "index").write_text(f"{index}\n")
        (classes / f"video{number}" / "name").write_text("HD Camera\n")
    found = list_cameras(
        "linux", lambda words: V4L2 if words[-1].endswith("video0") else "Permission denied", devices, classes
    )
    assert [one.source.removeprefix(f"{devices}/") for one in found] == ["video0", "video2", "video10"]
    assert found[0].formats == ("yuyv422: 640x480 320x240", "mjpeg: 1280x720 640x480")
    assert "HD Camera" in known_cameras(found) and "add yourself to the group video" in known_cameras(found)
    assert "shows no camera" in known_cameras([])


def test_ffmpeg_is_there_and_what_it_answers_is_read():
    assert find_ffmpeg() and isinstance(list_cameras(), list)


def test_words_become_cameras_with_names():
    assert parse_cameras(["front", "side=http://a/b?c=d"], ["front"]) == (("front",), {"side": "http://a/b?c=d"})
    assert parse_cameras(["/dev/video0"]) == ((), {"front": "/dev/video0"})
    assert parse_cameras(["HD Camera=2"]) == ((), {"front": "HD Camera=2"})  # names of devices may hold anything
    for words in (["/dev/video0", "/dev/video1"], ["a=test", "a=test"], ["front", "front=test"]):
        with pytest.raises(ConfigError, match="as another one is; expected a name for each"):
            parse_cameras(words, ["front"])


def test_sizes_are_even():
    with pytest.raises(ConfigError, match="width_px"):
        CameraConfig.parse({"source": "test", "width_px": 641}, where="camera")
