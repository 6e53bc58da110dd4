"""The firmware as a program in virtual time: servos, the number reader with its time-outs, the receive ring.

A discrete-event model: `advance` runs the loop up to an instant, so that an hour passes in seconds and the same bytes
at the same instants always give the same output. Times are whole microseconds.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

from featherweight.robot.emulator.inputs import ConstantInputs, Inputs
from featherweight.robot.kit import (
    BOOT_S,
    BYTE_US,
    LIMIT_DEG,
    LOOP_US,
    PARSE_TIMEOUT_US,
    RING_BYTES,
    SERVOS,
    STEP_DEG,
)
from featherweight.robot.protocol import Status, format_status

_LF, _MINUS = 0x0A, 0x2D
_DIGITS = range(0x30, 0x3A)
_IGNORED = 0x01
"""Stream::parseInt of the Arduino core skips this byte inside a number; its author held it to be impossible there."""

Program = Generator["_Wait", None, None]
PulseHook = Callable[[int, tuple[int, ...]], None]


@dataclass(frozen=True, slots=True)
class _Wait:
    until_us: int
    for_byte: bool = False


@dataclass
class FirmwareCounts:
    """What happened to the bytes that the host sent."""

    accepted: int = 0
    rejected: int = 0
    overflowed_bytes: int = 0


class Firmware:
    """One Arduino with six servos.

    Args:
        inputs: gives potentiometers and digital inputs at a time.
        boot_s: silence after a reset, in seconds.
        on_pulse: called with (time in microseconds, (6,) angles) whenever the servos get their pulses.
    """

    def __init__(self, inputs: Inputs | None = None, boot_s: float = BOOT_S, on_pulse: PulseHook | None = None) -> None:
        self.inputs = inputs or ConstantInputs()
        self.counts = FirmwareCounts()
        self.now_us = 0
        self._boot_us = round(boot_s * 1e6)
        self._on_pulse = on_pulse
        self._arrivals: deque[tuple[int, int]] = deque()
        self.reset(0)

    def reset(self, now_us: int) -> None:
        """Start again as after power-up: the arm jumps to zero, unread bytes are lost."""
        self.now_us = max(now_us, self.now_us)
        self.target_deg = [0] * SERVOS
        self.current_deg = [0] * SERVOS
        self._ring: deque[int] = deque()
        self._arrivals.clear()
        self._lines: list[tuple[int, bytes]] = []
        self._program = self._run()
        self._wait = next(self._program)

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
                if len(self._ring) < RING_BYTES:
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

    def _run(self) -> Program:
        yield _Wait(self.now_us + self._boot_us)
        while True:
            q_deg = tuple(self.current_deg)
            for i, target in enumerate(self.target_deg):
                self.current_deg[i] += max(-STEP_DEG, min(STEP_DEG, target - self.current_deg[i]))
            if self._on_pulse is not None:
                self._on_pulse(self.now_us, tuple(self.current_deg))
            pots, digitals = self.inputs.read(self.now_us / 1e6)
            if self._ring:
                yield from self._read_command()
            self._lines.append((self.now_us, format_status(Status(q_deg, pots, digitals))))
            yield _Wait(self.now_us + LOOP_US)

    def _read_command(self) -> Program:
        values: list[int] = []
        for _ in range(SERVOS):
            yield from self._read_number(values)
        # Without waiting: a command ends with LF or not at all.
        if self._ring and self._ring.popleft() == _LF:
            self.target_deg = [max(-LIMIT_DEG, min(LIMIT_DEG, value)) for value in values]
            self.counts.accepted += 1
        else:
            self.counts.rejected += 1

    def _read_number(self, values: list[int]) -> Program:
        """Append one number as Stream::parseInt reads it, cut to the 16 bits of an AVR's int."""
        yield from self._wait_for_byte()
        while self._ring and self._ring[0] not in _DIGITS and self._ring[0] != _MINUS:
            self._ring.popleft()
            yield from self._wait_for_byte()
        number, sign = 0, 1
        if self._ring:
            while True:
                byte = self._ring.popleft()
                if byte == _MINUS:
                    sign = -1
                elif byte in _DIGITS:
                    number = number * 10 + byte - _DIGITS.start
                yield from self._wait_for_byte()
                if not self._ring or (self._ring[0] not in _DIGITS and self._ring[0] != _IGNORED):
                    break
        values.append((sign * number + 0x8000) % 0x10000 - 0x8000)

    def _wait_for_byte(self) -> Program:
        if not self._ring:
            yield _Wait(self.now_us + PARSE_TIMEOUT_US, for_byte=True)
