"""Where the pictures of a real camera come from, and how ffmpeg is asked for them on each system.

A source is a device (``/dev/video0`` or a number on Linux, a name or a number on macOS, a name on Windows), an address
(``http://``, ``rtsp://``, ``udp://``, ``tcp://``), a file, which plays over and over, or ``test``: a moving picture.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from featherweight.config import Config
from featherweight.errors import ConfigError, MissingExtraError

TEST = "test"
ADDRESSES = ("http://", "https://", "rtsp://", "rtmp://", "udp://", "rtp://", "tcp://", "srt://")
STALE_S = 0.5
"""Age from which a picture shows the past."""
ASKING_S = 20.0
"""Longest time for a question to ffmpeg."""


class CameraConfig(Config):
    """A camera and what it shall give."""

    source: str
    """See the top of this file."""
    width_px: int | None = Field(default=None, ge=16, le=7680, multiple_of=2)
    """Of its pictures, even, as video codecs need; None takes what the camera gives."""
    height_px: int | None = Field(default=None, ge=16, le=4320, multiple_of=2)
    """Of its pictures, even; None takes what the camera gives."""
    fps: float | None = Field(default=None, gt=0, le=240)
    """Pictures a second; None takes what the camera gives."""
    input_format: str | None = None
    """How a device sends its pictures, such as "mjpeg", which many need for large ones; None leaves it to ffmpeg."""
    max_age_s: float = Field(default=STALE_S, gt=0)
    """Age from which a picture counts as none; a slow camera is given three of its periods."""


@dataclass(frozen=True)
class CameraInfo:
    """A camera of this computer."""

    source: str
    """What `--camera` takes."""
    description: str
    """Its name."""
    formats: tuple[str, ...] = ()
    """What it says that it gives, such as "mjpeg: 640x480 1280x720"; empty where the system does not tell."""


def find_ffmpeg() -> str:
    """Return the ffmpeg that imageio-ffmpeg brings along or finds.

    Raises:
        MissingExtraError: if there is none.
    """
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            "robot: package=imageio-ffmpeg is not installed; expected it for cameras. Run pip install "
            "featherweight[robot]."
        ) from error


def is_device(source: str) -> bool:
    """Return whether a source is a device of this computer, neither address nor file nor test."""
    return source != TEST and not source.startswith(ADDRESSES) and not _is_file(source)


def input_arguments(config: CameraConfig, platform: str = sys.platform) -> list[str]:
    """Return what ffmpeg has to be told to open a camera.

    Args:
        config: of the camera.
        platform: "linux", "darwin" or "win32".

    Example:
        >>> " ".join(input_arguments(CameraConfig(source="/dev/video0", fps=30), "linux"))
        '-fflags nobuffer -f v4l2 -framerate 30 -i /dev/video0'
    """
    source, size = config.source, f"{config.width_px}x{config.height_px}" if config.width_px else ""
    if source == TEST:
        return ["-re", "-f", "lavfi", "-i", f"testsrc2=size={size or '640x480'}:rate={config.fps or 30:g}"]
    if source.startswith(ADDRESSES):
        # A server that falls silent is given up after five seconds; only these two know the option.
        patience = ["-rw_timeout", "5000000"] if source.startswith(("http", "tcp://")) else []
        return ["-fflags", "nobuffer", "-flags", "low_delay", *patience, "-i", source]
    if _is_file(source):
        return ["-re", "-stream_loop", "-1", "-i", source]
    wanted = ["-framerate", f"{config.fps:g}"] if config.fps else []
    wanted += ["-video_size", size] if size else []
    if platform == "darwin":
        # Most built-in cameras refuse the 29.97 that ffmpeg asks for by itself.
        format_ = ["-pixel_format", config.input_format] if config.input_format else []
        return [
            "-f",
            "avfoundation",
            *(wanted if config.fps else ["-framerate", "30", *wanted]),
            *format_,
            "-i",
            source,
        ]
    if platform == "win32":
        format_ = ["-vcodec", config.input_format] if config.input_format else []
        return ["-f", "dshow", "-rtbufsize", "64M", *wanted, *format_, "-i", f"video={source}"]
    format_ = ["-input_format", config.input_format] if config.input_format else []
    device = f"/dev/video{source}" if source.isdecimal() else source
    return ["-fflags", "nobuffer", "-f", "v4l2", *format_, *wanted, "-i", device]


def list_cameras(
    platform: str = sys.platform,
    ask: Callable[[Sequence[str]], str] | None = None,
    devices: Path = Path("/dev"),
    classes: Path = Path("/sys/class/video4linux"),
) -> list[CameraInfo]:
    """Return the cameras of this computer.

    Args:
        platform: "linux", "darwin" or "win32".
        ask: runs ffmpeg with arguments and returns what it says; None for the real one.
        devices: where Linux has its devices.
        classes: where Linux describes them.
    """
    ask = ask or _ask_ffmpeg
    if platform == "darwin":
        said = ask(["-f", "avfoundation", "-list_devices", "true", "-i", ""])
        video = said.partition("video devices:")[2].partition("audio devices:")[0]
        return [CameraInfo(name, f"number {number}") for number, name in re.findall(r"\[(\d+)\] (.+)", video)]
    if platform == "win32":
        said = ask(["-f", "dshow", "-list_devices", "true", "-i", "dummy"])
        return [CameraInfo(name, "DirectShow") for name in re.findall(r'"([^"]+)" \(video\)', said)]
    found = []
    for path in sorted(devices.glob("video*"), key=lambda path: (len(path.name), path.name)):
        told = classes / path.name
        # The further devices of a camera give no pictures but facts about them.
        if _read(told / "index") not in ("", "0"):
            continue
        said = ask(["-f", "v4l2", "-list_formats", "all", "-i", str(path)])
        formats = re.findall(r"(?:Raw|Compressed)\s*:\s*(\S+)\s*:.*:\s*(\S.*)", said)
        sizes = tuple(f"{name}: {' '.join(sizes.split())}" for name, sizes in formats)
        denied = "no permission: add yourself to the group video" if "Permission denied" in said else ""
        name = _read(told / "name")
        found.append(CameraInfo(str(path), f"{name} ({denied})" if name and denied else name or denied, sizes))
    return found


def known_cameras(sources: Sequence[CameraInfo]) -> str:
    """Return the sentence that names the cameras that there are."""
    if not sources:
        return "This computer shows no camera: plug one in, or take an address, a file, or test."
    names = ", ".join(f"{one.source} ({one.description})" if one.description else one.source for one in sources)
    return f"Cameras here: {names}."


def parse_cameras(words: Sequence[str], simulated: Sequence[str] = ()) -> tuple[tuple[str, ...], dict[str, str]]:
    """Split the words of `--camera` into cameras of the simulator and sources by name.

    Args:
        words: "front" (of the simulator), "NAME=SOURCE", or one "SOURCE", which is called front.
        simulated: names of the simulator's cameras; none where there is no simulator.
    Returns:
        Names of the simulator's cameras; name -> source of the real ones.
    Raises:
        ConfigError: if two have one name.

    Example:
        >>> parse_cameras(["wrist", "desk=/dev/video0"], ["front", "wrist"])
        (('wrist',), {'desk': '/dev/video0'})
    """
    names: list[str] = []
    real: dict[str, str] = {}
    for word in words:
        given = re.fullmatch(r"([A-Za-z]\w{0,31})=(.+)", word)
        if given is None and word in simulated:
            name = word
        else:
            name, source = given.groups() if given else ("front", word)
            if name not in real:
                real[name] = source
        if name in names:
            raise ConfigError(
                f"robot: camera={word} is called {name}, as another one is; expected a name for each. Write "
                f"NAME=SOURCE, such as side={word.partition('=')[2] or word}."
            )
        names.append(name)
    return tuple(name for name in names if name not in real), real


def _is_file(source: str) -> bool:
    return Path(source).is_file()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _ask_ffmpeg(arguments: Sequence[str]) -> str:
    try:
        command = [find_ffmpeg(), "-hide_banner", "-nostdin", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=ASKING_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stderr.decode(errors="replace")
