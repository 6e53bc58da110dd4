"""Our own firmware as a program in virtual time: whole lines alone, and the checked protocol.

Its twin in C stands in firmware/. Differs from the published firmware: only whole lines count, so nothing stalls and no
damaged line moves the arm; a reset that leaves the power on leaves the arm where it is; once the host has announced
itself, silence holds the arm, speed and acceleration are limited, and lines have a number and a checksum.
"""

import math

from featherweight.robot.checked_lines import (
    MAX_ACCELERATION_DEG_S2,
    NUMBERS,
    WATCHDOG_S,
    CheckedStatus,
    format_checked_status,
    parse_announcement,
    parse_checked_command,
    parse_plain_command,
)
from featherweight.robot.emulator.board import Board, Program, Wait
from featherweight.robot.kit import LIMIT_DEG, LOOP_US, SERVOS
from featherweight.robot.protocol import Status, format_status

_LONGEST = 40
_PART = 256
"""Positions are whole parts of a degree, as in the 16 bits of the AVR."""
_MOST = 88 * _PART * LOOP_US // 1_000_000
_GAIN = int(MAX_ACCELERATION_DEG_S2) * _PART * LOOP_US**2 // 10**12
_WATCHDOG_US = round(WATCHDOG_S * 1e6) - LOOP_US


class KitFirmware(Board):
    """Our own firmware; see `Board`."""

    ring_bytes = 127

    def _start(self) -> None:
        """Stay where the arm is; the protocol is the plain one again."""
        self.is_checked = self.is_held = False
        self._position = [angle * _PART for angle in self.current_deg]
        self.target_deg = list(self.current_deg)
        self._speed, self._heading = [0] * SERVOS, [0] * SERVOS
        self._line, self._is_overlong = bytearray(), False
        self._number = self._accepted = self._refused = 0
        self._heard_us = self.now_us

    def _run(self) -> Program:
        yield Wait(self.now_us + self._boot_us)
        while True:
            before_deg = tuple(self.current_deg)
            self._move()
            if self._on_pulse is not None:
                self._on_pulse(self.now_us, tuple(position / _PART for position in self._position))
            pots, digitals = self.inputs.read(self.now_us / 1e6)
            self._read_line()
            if self.is_checked:
                status = Status(tuple(self.current_deg), pots, digitals)
                checked = CheckedStatus(status, self._number, self._accepted, self._refused, self.is_held)
                self._number = (self._number + 1) % NUMBERS
                self._lines.append((self.now_us, format_checked_status(checked)))
            else:
                self._lines.append((self.now_us, format_status(Status(before_deg, pots, digitals))))
            yield Wait(self.now_us + LOOP_US)

    def _move(self) -> None:
        if self.is_checked and not self.is_held and self.now_us - self._heard_us > _WATCHDOG_US:
            self.is_held, self.target_deg = True, list(self.current_deg)
        for i, target in enumerate(self.target_deg):
            if self.is_checked:
                self._step_smoothly(i, target * _PART - self._position[i])
            else:
                self._position[i] += max(-_PART, min(_PART, target * _PART - self._position[i]))
        self.current_deg = [(position + _PART // 2) // _PART for position in self._position]

    def _step_smoothly(self, i: int, way: int) -> None:
        """Get faster slowly, stop at once, and come to a known target along a parabola."""
        if way == 0:
            self._speed[i] = 0
            return
        towards, distance = (1, way) if way > 0 else (-1, -way)
        if self._heading[i] != towards:
            self._speed[i] = 0
        self._heading[i] = towards
        most = (math.isqrt(_GAIN**2 + 8 * _GAIN * distance) - _GAIN) // 2
        self._speed[i] = min(self._speed[i] + _GAIN, max(1, min(most, _MOST)))
        self._position[i] += towards * min(self._speed[i], distance)

    def _read_line(self) -> None:
        while self._ring:
            byte = self._ring.popleft()
            if byte == 0x0A:
                self._take_line()
                # Checked lines are taken as long as there are any, so that after a jittery loop the newest counts.
                if not self.is_checked:
                    return
                continue
            if len(self._line) < _LONGEST and byte:
                self._line.append(byte)
            else:
                self._is_overlong = True

    def _take_line(self) -> None:
        line = bytes(self._line).removesuffix(b"\r")
        is_taken = not self._is_overlong and (line == b"" or self._obey(line))
        if is_taken and line:
            self.counts.accepted += 1
        elif not is_taken:
            self.counts.rejected += 1
            self._refused = (self._refused + 1) % NUMBERS
        self._line.clear()
        self._is_overlong = False

    def _obey(self, line: bytes) -> bool:
        if parse_announcement(line) is not None:
            self.is_checked, self._accepted, self._refused = True, 0, 0
            self._stay()
            return True
        if (angles := parse_plain_command(line)) is not None:
            if self.is_checked:
                self.is_checked = False
                self._stay()
            self._set(angles)
            return True
        command = parse_checked_command(line) if self.is_checked else None
        # What is old, or was there before, is refused.
        if command is None or not 1 <= (command[0] - self._accepted) % NUMBERS <= NUMBERS // 2 - 1:
            return False
        self._accepted = command[0]
        self._set(command[1])
        return True

    def _stay(self) -> None:
        self.target_deg, self._position = list(self.current_deg), [angle * _PART for angle in self.current_deg]
        self._speed = [0] * SERVOS
        self._heard_us, self.is_held = self.now_us, False

    def _set(self, angles_deg: tuple[int, ...]) -> None:
        self.target_deg = [max(-LIMIT_DEG, min(LIMIT_DEG, angle)) for angle in angles_deg]
        self._heard_us, self.is_held = self.now_us, False
