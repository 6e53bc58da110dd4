"""An emulated kit inside the process: a port object in real time, on every operating system, without a terminal."""

import threading
import time

from featherweight.robot.emulator.emulated_kit import EmulatedKit


class InProcessPort:
    """What the driver needs of a serial port, with an `EmulatedKit` behind it.

    Args:
        kit: the emulated kit; opened here.
        read_timeout_s: how long `read` waits for the first byte.
        time_scale: seconds of the kit per second of the clock.
    """

    def __init__(self, kit: EmulatedKit, read_timeout_s: float = 0.05, time_scale: float = 1.0) -> None:
        self._kit = kit
        self._read_timeout_s = read_timeout_s
        self._time_scale = time_scale
        self._lock = threading.Lock()
        self._start_s = time.monotonic() - kit.firmware.now_us / 1e6 / time_scale
        with self._lock:
            kit.open(self._now_us())

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read at once; unknown here."""
        return 0

    def read(self, size: int = 1) -> bytes:
        """Return what has arrived; waits for the first byte, up to the time-out."""
        deadline_s = time.monotonic() + self._read_timeout_s
        while True:
            with self._lock:
                data = self._kit.read(self._now_us())
            if data or time.monotonic() >= deadline_s:
                return data
            time.sleep(0.001)

    def write(self, data: bytes) -> int:
        """Put bytes on the wire; returns their number."""
        with self._lock:
            self._kit.write(self._now_us(), data)
        return len(data)

    def reset_input_buffer(self) -> None:
        """Drop what has arrived and was not read."""
        with self._lock:
            self._kit.read(self._now_us())

    def close(self) -> None:
        """Close the port."""
        with self._lock:
            self._kit.close()

    def _now_us(self) -> int:
        return int((time.monotonic() - self._start_s) * self._time_scale * 1e6)
