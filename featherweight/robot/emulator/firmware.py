"""The published firmware as a program in virtual time: servos, and the number reader with its time-outs."""

from featherweight.robot.emulator.board import Board, Program, Wait
from featherweight.robot.kit import LIMIT_DEG, LOOP_US, PARSE_TIMEOUT_US, SERVOS, STEP_DEG
from featherweight.robot.protocol import Status, format_status

_LF, _MINUS = 0x0A, 0x2D
_DIGITS = range(0x30, 0x3A)
_IGNORED = 0x01
"""Stream::parseInt of the Arduino core skips this byte inside a number; its author held it to be impossible there."""


class Firmware(Board):
    """The published firmware; see `Board`."""

    def _start(self) -> None:
        """Jump to zero, as the arm does after power-up and reset."""
        self.target_deg = [0] * SERVOS
        self.current_deg = [0] * SERVOS

    def _run(self) -> Program:
        yield Wait(self.now_us + self._boot_us)
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
            yield Wait(self.now_us + LOOP_US)

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
            yield Wait(self.now_us + PARSE_TIMEOUT_US, for_byte=True)
