"""The board under a firmware, in virtual time: its receive ring, its clock, its servos.

A discrete-event model: `advance` runs the firmware's program up to an instant, so that an hour passes in seconds and
the same bytes at the same instants always give the same output. Times are whole microseconds.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from featherweight.robot.emulator.inputs import ConstantInputs, Inputs
from featherweight.robot.kit import BOOT_S, BYTE_US, RING_BYTES, SERVOS

Program = Generator["Wait", None, None]
PulseHook = Callable[[int, tuple[float, ...]], None]


@dataclass(frozen=True, slots=True)
class Wait:
    """What a program yields: sleep until an instant, or until a byte comes."""

    until_us: int
    for_byte: bool = False


@dataclass
class FirmwareCounts:
    """What happened to the bytes that the host sent."""

    accepted: int = 0
    rejected: int = 0
    overflowed_bytes: int = 0


class Board(ABC):
    """One Arduino with six servos; a firmware is a subclass with a program.

    Args:
        inputs: gives potentiometers and digital inputs at a time.
        boot_s: silence after a reset, in seconds.
        on_pulse: called with (time in microseconds, (6,) angles) whenever the servos get their pulses.
    """

    ring_bytes = RING_BYTES
    """Unread bytes that the firmware keeps."""

    def __init__(self, inputs: Inputs | None = None, boot_s: float = BOOT_S, on_pulse: PulseHook | None = None) -> None:
        self.inputs = inputs or ConstantInputs()
        self.counts = FirmwareCounts()
        self.now_us = 0
        self.target_deg = [0] * SERVOS
        self.current_deg = [0] * SERVOS
        self._boot_us = round(boot_s * 1e6)
        self._on_pulse = on_pulse
        self._arrivals: deque[tuple[int, int]] = deque()
        self.reset(0)

    def reset(self, now_us: int) -> None:
        """Start again, as DTR makes it: unread bytes are lost."""
        self.now_us = max(now_us, self.now_us)
        self._ring: deque[int] = deque()
        self._arrivals.clear()
        self._lines: list[tuple[int, bytes]] = []
        self._start()
        self._program = self._run()
        self._wait = next(self._program)

    @abstractmethod
    def _start(self) -> None:
        """Set what the firmware sets when it starts."""

    @abstractmethod
    def _run(self) -> Program:
        """Boot, then loop for ever."""

    def receive(self, now_us: int, data: bytes) -> None:
        """Put bytes on the wire at an instant; they arrive one after the other at the baud rate."""
        arrival_us = max(now_us, self.now_us)
        if self._arrivals:
            arrival_us = max(arrival_us, self._arrivals[-1][0])
        for byte in data:
            arrival_us += BYTE_US
            self._arrivals.append((arrival_us, byte))

    def advance(self, to_us: int) -> list[tuple[int, bytes]]:
        """Run up to an instant; return (start of transmission, line) of the lines printed on the way."""
        while True:
            wake_us = self._wait.until_us
            if self._arrivals and self._arrivals[0][0] <= min(wake_us, to_us):
                arrival_us, byte = self._arrivals.popleft()
                self.now_us = max(self.now_us, arrival_us)
                if len(self._ring) < self.ring_bytes:
                    self._ring.append(byte)
                else:
                    self.counts.overflowed_bytes += 1
                if not self._wait.for_byte:
                    continue
            elif wake_us <= to_us:
                self.now_us = wake_us
            else:
                break
            self._wait = next(self._program)
        self.now_us = max(self.now_us, to_us)
        lines, self._lines = self._lines, []
        return lines
