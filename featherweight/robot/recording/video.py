"""Videos of cameras: written while an episode is recorded, read by the times of frames.

Every second picture is a key picture, so that single pictures are found quickly. Encoding runs in a thread: the encoder
works without Python's lock. When it cannot keep up, the newest picture is left out and the one before repeated and
counted, so that pictures and rows stay together.
"""

import functools
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.config.files import flush
from featherweight.errors import ConfigError, MissingExtraError
from featherweight.robot.recording.statistics import Statistics, describe_pictures

Picture = NDArray[np.uint8]
ENCODERS = {"libsvtav1": ("av1", {"preset": "10"}), "libx264": ("h264", {"preset": "veryfast"}), "mpeg4": ("mpeg4", {})}
"""Encoder -> name of the codec, further options; the first one that is there is taken, as LeRobot would."""
WAITING = 60
"""Pictures that may wait for the encoder."""
SAMPLE_EVERY, SAMPLE_STEP = 10, 4
"""The statistics see every tenth picture, and every fourth pixel of each row and column."""
TOLERANCE_S = 1e-4


def import_av() -> Any:
    """Import PyAV, or say how to install it."""
    os.environ.setdefault("SVT_LOG", "1")  # errors alone; the encoder writes a page for every video otherwise
    try:
        import av
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=av is not installed; expected it for videos. Run pip install featherweight[robot]."
        ) from error
    return av


@functools.cache
def choose_encoder() -> tuple[str, str]:
    """Return the first encoder of `ENCODERS` that works here, and the name of its codec."""
    av = import_av()
    for encoder, (codec, _) in ENCODERS.items():
        try:
            av.codec.Codec(encoder, "w")
        except (ValueError, av.error.FFmpegError):
            continue
        return encoder, codec
    raise MissingExtraError(
        f"robot: package=av has none of the encoders {', '.join(ENCODERS)}; expected one. Install PyAV from a wheel."
    )


class VideoWriter:
    """Writes one video; `add` never waits.

    Args:
        path: of the file, which is complete only after `close`.
        fps: pictures a second.
        height_px: even.
        width_px: even.
        encoder: see `choose_encoder`.
    """

    def __init__(self, path: Path, fps: int, height_px: int, width_px: int, encoder: str | None = None) -> None:
        self._av = import_av()
        self.path, self.count, self.repeated = path, 0, 0
        self._encoder = encoder or choose_encoder()[0]
        self._sample: list[Picture] = []
        self._failure: Exception | None = None
        self._pictures: queue.Queue[tuple[int, Picture] | None] = queue.Queue(WAITING)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = self._av.open(str(path), "w", format="mp4")
        stream = self._container.add_stream(self._encoder, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.options = {"g": "2", "crf": "30", **ENCODERS[self._encoder][1]}
        self._stream: Any = stream
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def add(self, picture: Picture) -> None:
        """Take the picture of the next frame, (H, W, 3)."""
        if self.count % SAMPLE_EVERY == 0:
            self._sample.append(picture[::SAMPLE_STEP, ::SAMPLE_STEP].copy())
        try:
            self._pictures.put_nowait((self.count, picture))
        except queue.Full:
            self.repeated += 1
        self.count += 1

    def close(self) -> Statistics:
        """Finish the file, on the disk when this returns; return the statistics of its pictures.

        Raises:
            OSError: if it cannot be written.
        """
        self._finish()
        if self._failure is not None:
            raise OSError(f"video {self.path.name} cannot be written ({self._failure})") from self._failure
        flush(self.path)
        return describe_pictures(self._sample)

    def discard(self) -> None:
        """Give the file up."""
        self._finish()
        self.path.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._thread.is_alive():
            self._pictures.put(None)
            self._thread.join()

    def _run(self) -> None:
        last: Picture | None = None
        written = 0
        while (item := self._pictures.get()) is not None:
            if self._failure is not None:
                continue
            try:
                number, picture = item
                while written < number and last is not None:
                    self._encode(last, written)
                    written += 1
                self._encode(picture, written)
                last, written = picture, written + 1
            except Exception as error:  # said when the episode is saved
                self._failure = error
        try:
            while self._failure is None and written < self.count and last is not None:
                self._encode(last, written)
                written += 1
            # Once a packet could not be written, a further one ends the process inside of FFmpeg.
            if self._failure is None:
                self._container.mux(self._stream.encode())
            self._container.close()
        except Exception as error:
            self._failure = self._failure or error

    def _encode(self, picture: Picture, number: int) -> None:
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts = number
        self._container.mux(self._stream.encode(frame))


def count_pictures(path: Path) -> int:
    """Return how many pictures a video holds, without decoding them.

    Raises:
        ConfigError: if it is missing or truncated.
    """
    av = import_av()
    try:
        with av.open(str(path)) as container:
            return sum(1 for packet in container.demux(video=0) if packet.pts is not None and packet.size)
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise _unreadable(path, error) from error


def read_pictures(path: Path, times_s: Sequence[float], tolerance_s: float = TOLERANCE_S) -> list[Picture]:
    """Return the (H, W, 3) pictures at some times of a video.

    Args:
        path: of the video.
        times_s: seconds from its start, in any order.
        tolerance_s: largest distance of a picture from the time that was asked for.
    Raises:
        ConfigError: if the file cannot be read or has no picture near one of the times.
    """
    av = import_av()
    wanted = sorted(set(times_s))
    found: dict[float, Picture] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = float(stream.time_base)
            container.seek(max(0, int((wanted[0] - tolerance_s) / base)), stream=stream, backward=True)
            for frame in container.decode(stream):
                time_s = float(frame.pts) * base
                near = [t for t in wanted if abs(t - time_s) <= tolerance_s and t not in found]
                if near:
                    picture: Picture = frame.to_ndarray(format="rgb24")
                    found |= dict.fromkeys(near, picture)
                if time_s >= wanted[-1]:
                    break
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise _unreadable(path, error) from error
    missing = [t for t in wanted if t not in found]
    if missing:
        raise ConfigError(
            f"data set: video={path} has no picture within {tolerance_s} s of {missing[0]:.4f} s; expected one for "
            "every frame. Run fw robot dataset check."
        )
    return [found[t] for t in times_s]


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = "it is not there" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
    return ConfigError(
        f"data set: video={path} cannot be read ({reason}); expected a whole video. Run fw robot dataset repair on a "
        "copy, or fetch the file again."
    )
