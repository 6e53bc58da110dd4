"""A real camera: ffmpeg reads it in a process of its own, a thread keeps the newest picture and when it came.

Nobody waits for a camera. One that is pulled out, falls silent or changes its size has no fresh picture from then on,
says why, and is opened again each second until it is back. ffmpeg hands over PPM, whose head tells the size of each
picture.
"""

import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, NamedTuple, TypeAlias

from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.camera.source import (
    CameraConfig,
    find_ffmpeg,
    input_arguments,
    is_device,
    known_cameras,
    list_cameras,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Picture: TypeAlias = "NDArray[np.uint8]"
OPEN_S, SILENT_S, AGAIN_S = 15.0, 3.0, 1.0
"""Longest time to the first picture, longest silence after it, and pause before a camera is opened again."""
SETTLED_S, MEASURED_S, TOLERANCE = 0.8, 1.5, 0.2
"""Time that a camera is given, time over which its rate is measured then, and the share by which it may differ."""
PERIODS = 3.0
"""A picture is fresh for this many periods of its camera, if that is longer than `max_age_s`."""
OUTPUT = (
    # Video codecs halve the colours, so an odd last row or column is cut off.
    *("-map", "0:v:0", "-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-fps_mode", "passthrough"),
    *("-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-flush_packets", "1", "pipe:1"),
)
COMPLAINT = re.compile(r"[Cc]annot|[Ff]ail|[Ee]rror|No such|refused|busy|denied|not supported|[Ii]nvalid")
LARGEST_BYTES = 7680 * 4320 * 3


class Frame(NamedTuple):
    """One picture of a camera."""

    picture: Picture
    """(H, W, 3)."""
    time_s: float
    """When it had come, on the monotonic clock."""
    number: int
    """Since the camera was opened first, from 1 on."""


class LiveCamera:
    """A camera of this computer or of the network; `start` it and `close` it.

    Args:
        name: as observations, data sets and pages call it.
        config: which, and what it shall give.
        clock: monotonic time in seconds.

    Example:
        >>> camera = LiveCamera("front", CameraConfig(source="test")).start()
        >>> camera.fresh().shape
        (480, 640, 3)
        >>> camera.close()
    """

    def __init__(self, name: str, config: CameraConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.config = name, config
        self.newest: Frame | None = None
        self.restarts = 0
        """How often it had to be opened again."""
        self.period_s = 0.0
        """Mean time between pictures, of about the last ten; 0 before the second."""
        self._clock, self._stop = clock, threading.Event()
        self._size: tuple[int, int] | None = None
        self._said: deque[str] = deque(maxlen=20)
        self._why = "it was not opened yet"
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width) of its pictures, which stays; known after `start`."""
        return self._size or (self.config.height_px or 0, self.config.width_px or 0)

    @property
    def pid(self) -> int | None:
        """Of the ffmpeg that reads it now."""
        return None if self._process is None else self._process.pid

    def start(self) -> "LiveCamera":
        """Open the camera and wait for its first picture, and for some more if a rate was chosen.

        Raises:
            DeviceError: if it cannot be opened or gives no picture; the message names the cameras that there are.
            ConfigError: if it gives another size or rate than the chosen one.
            MissingExtraError: if there is no ffmpeg.
        """
        command = [find_ffmpeg(), "-hide_banner", "-nostdin", "-nostats", *input_arguments(self.config), *OUTPUT]
        self._thread = threading.Thread(target=self._run, args=(command,), name=f"camera {self.name}", daemon=True)
        self._thread.start()
        try:
            self._wait_for_first()
            self._check_chosen()
        except BaseException:
            self.close()
            raise
        return self

    def fresh(self) -> "Picture | None":
        """Return the (H, W, 3) newest picture; None if it shows the past, see `trouble`."""
        newest = self.newest
        return None if newest is None or self._clock() - newest.time_s > self._max_age_s else newest.picture

    @property
    def trouble(self) -> str:
        """Why there is no fresh picture; empty while there is one."""
        if self.fresh() is not None:
            return ""
        return f"camera {self.name} gives no picture: {self._why or 'it is silent'}"

    def close(self) -> None:
        """Give the camera back."""
        self._stop.set()
        self._kill()
        if self._thread is not None:
            self._thread.join(timeout=5)

    @property
    def _max_age_s(self) -> float:
        return max(self.config.max_age_s, PERIODS * self.period_s)

    def _wait_for_first(self) -> None:
        end_s = time.monotonic() + OPEN_S
        while self.newest is None and time.monotonic() < end_s and not self.restarts:
            time.sleep(0.01)
        if self.newest is None:
            hint = known_cameras(list_cameras()) if is_device(self.config.source) else "Look at address or file."
            why = self._why or "it stayed silent"
            raise DeviceError(
                f"camera: {self.name}={self.config.source} gives no pictures ({why}); expected a camera. {hint}"
            )

    def _check_chosen(self) -> None:
        config, (height_px, width_px) = self.config, self.size_px
        wanted = (config.height_px or height_px, config.width_px or width_px)
        if wanted != (height_px, width_px):
            raise ConfigError(
                f"camera: size={wanted[1]}x{wanted[0]} is not what {config.source} gives; expected "
                f"{width_px}x{height_px}. Choose that, or leave the size out."
            )
        if config.fps is None:
            return
        time.sleep(SETTLED_S)
        first = self.newest
        time.sleep(MEASURED_S)
        last = self.newest
        assert first is not None and last is not None
        rate = (last.number - first.number) / max(last.time_s - first.time_s, 1e-3)
        if abs(rate - config.fps) > TOLERANCE * config.fps:
            raise ConfigError(
                f"camera: rate={config.fps:g} is not what {config.source} gives; expected about {rate:.0f} pictures a "
                "second, as measured. Choose that, or leave the rate out; more light helps some cameras."
            )

    # ---- its threads ----------------------------------------------------------------------------------------------

    def _run(self, command: list[str]) -> None:
        while not self._stop.is_set():
            self._said.clear()
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            except OSError as error:
                self._why = f"ffmpeg cannot be started: {error.strerror or error}"
            else:
                self._watch(self._process)
            self.restarts += 1
            self._stop.wait(AGAIN_S)

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Let two threads read what a process says, and end it when it falls silent."""
        assert process.stdout is not None and process.stderr is not None
        readers = [
            threading.Thread(target=self._read, args=(process.stdout,), daemon=True),
            threading.Thread(target=self._listen, args=(process.stderr,), daemon=True),
        ]
        for reader in readers:
            reader.start()
        begin_s, before, why = self._clock(), self.newest, ""
        while readers[0].is_alive() and not self._stop.is_set():
            readers[0].join(timeout=0.1)
            newest = self.newest
            silent_s = self._clock() - (begin_s if newest is None or newest is before else newest.time_s)
            longest_s = OPEN_S if newest is before else max(SILENT_S, PERIODS * self.period_s)
            if silent_s > longest_s:
                why = f"it fell silent for {longest_s:g} s"
                break
        process.kill()
        for reader in readers:
            reader.join(timeout=5)
        code = process.wait()
        process.stdout.close()
        process.stderr.close()
        self._why = why or self._why_changed() or self._last_words() or f"ffmpeg ended with {code}"

    def _read(self, stream: IO[bytes]) -> None:
        """Take pictures until the stream ends, or one has another size than the first of all."""
        while (size := _read_head(stream)) is not None:
            data = bytearray(3 * size[0] * size[1])
            if stream.readinto(data) != len(data):  # type: ignore[attr-defined]
                return
            if self._size not in (None, size):
                self._said.append(f"Size {size[1]}x{size[0]}")
                return
            self._size = size
            now_s, before = self._clock(), self.newest
            if before is not None:
                step_s = min(now_s - before.time_s, 10.0)
                # A pause in which it was gone is none of its periods.
                if step_s < SILENT_S or not self.period_s:
                    self.period_s += (step_s - self.period_s) * (0.1 if self.period_s else 1.0)
            import numpy as np  # late: an arm without a camera needs none

            picture: Picture = np.frombuffer(data, dtype=np.uint8).reshape(*size, 3)
            self.newest, self._why = Frame(picture, now_s, (before.number if before else 0) + 1), ""

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            words = re.sub(r"^\[[^]]*\] ", "", line.decode(errors="replace").strip())
            self._said.append(words)
            if words.startswith("Reconfiguring filter graph") and re.search(r"\d+x\d+", words):
                # Otherwise ffmpeg would stretch the pictures of another size.
                self._kill()

    def _why_changed(self) -> str:
        """Return the sentence about another size, if that was why."""
        for words in self._said:
            found = re.search(r"^Size (\d+x\d+)|^Reconfiguring filter graph.*?(\d+x\d+)", words)
            if found and self._size:
                height_px, width_px = self._size
                now = found[1] or found[2]
                return f"its pictures have {now} now, and had {width_px}x{height_px}; set it back, or begin anew"
        return ""

    def _last_words(self) -> str:
        """Return what ffmpeg complained about, without its own general lines."""
        lines = [line for line in self._said if COMPLAINT.search(line)]
        told = [line for line in lines if not line.startswith("Error opening")]
        return (told or lines or [""])[-1].rstrip(".")[:200]

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()


def _read_head(stream: IO[bytes]) -> tuple[int, int] | None:
    """Return (height, width) of the next PPM; None at the end."""
    lines = [stream.readline(32) for _ in range(3)]
    if lines[0] != b"P6\n" or lines[2] != b"255\n":
        return None
    width_px, height_px = map(int, lines[1].split())
    return (height_px, width_px) if 0 < 3 * width_px * height_px <= LARGEST_BYTES else None
