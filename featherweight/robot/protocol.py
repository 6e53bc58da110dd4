r"""The serial line byte for byte: status lines from the kit, command lines to it.

A status line is ``6 q1..q6 6 p1..p6 5 d1..d5 UMI\r\n``, a command line six integers and a bare LF. The protocol has
no checksum and no sequence number, so a line counts only if it is complete, well formed and in range.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from featherweight.errors import ConfigError
from featherweight.robot.kit import DIGITAL_INPUTS, LIMIT_DEG, POT_MAX, POT_VOLT, POTENTIOMETERS, SERVOS

MAX_LINE_BYTES = 96
"""Length of the longest status line of either protocol, with CR and LF; a plain one has at most 75."""

_STATUS = re.compile(rb"6((?: -?\d{1,2}){6}) 6((?: \d{1,4}){6}) 5((?: [01]){5}) UMI\r?\n?")


@dataclass(frozen=True, slots=True)
class Status:
    """What one status line says.

    Attributes:
        q_deg: (6,) angles that the firmware commanded one loop ago; the kit has no other feedback.
        pots: (6,) readings of the potentiometers, 0..1023.
        digitals: (5,) inputs, 0 or 1; open inputs read 1.
    """

    q_deg: tuple[int, ...]
    pots: tuple[int, ...]
    digitals: tuple[int, ...]

    @property
    def pots_v(self) -> tuple[float, ...]:
        """(6,) voltages of the potentiometers."""
        return tuple(value * POT_VOLT / POT_MAX for value in self.pots)


def format_status(status: Status) -> bytes:
    r"""Write a status line as the firmware prints it.

    Example:
        >>> format_status(Status((0, 0, 0, 0, 0, -9), (512,) * 6, (1,) * 5))
        b'6 0 0 0 0 0 -9 6 512 512 512 512 512 512 5 1 1 1 1 1 UMI\r\n'
    """
    groups = ((SERVOS, status.q_deg), (POTENTIOMETERS, status.pots), (DIGITAL_INPUTS, status.digitals))
    fields = [str(field) for count, values in groups for field in (count, *values)]
    return (" ".join(fields) + " UMI\r\n").encode("ascii")


def parse_status(line: bytes) -> Status | None:
    """Read one line; None if anything about it is wrong.

    Args:
        line: bytes up to a line end, with it or without it.

    Example:
        >>> parse_status(b"6 0 0 0 0 0 91 6 1 2 3 4 5 6 5 1 1 1 1 1 UMI") is None  # 91 degrees are out of range
        True
    """
    match = _STATUS.fullmatch(line)
    if match is None:
        return None
    q_deg, pots, digitals = (tuple(map(int, group.split())) for group in match.groups())
    if max(q_deg) > LIMIT_DEG or min(q_deg) < -LIMIT_DEG or max(pots) > POT_MAX:
        return None
    return Status(q_deg, pots, digitals)


def format_command(angles_deg: Sequence[int]) -> bytes:
    r"""Write a command line; the firmware misreads anything but integers, single spaces and a bare LF.

    Raises:
        ConfigError: if there are not six whole numbers within the limits.

    Example:
        >>> format_command([10, -20, 30, -40, 90, -90])
        b'10 -20 30 -40 90 -90\n'
    """
    # A bool is an int, and int(1.5) would hide a mistake; so the type itself is asked.
    if len(angles_deg) != SERVOS or any(type(angle) is not int or abs(angle) > LIMIT_DEG for angle in angles_deg):
        raise ConfigError(
            f"format_command: angles_deg={list(angles_deg)} cannot be sent; expected {SERVOS} whole numbers from "
            f"{-LIMIT_DEG} to {LIMIT_DEG}. Round and clamp them first."
        )
    return (" ".join(map(str, angles_deg)) + "\n").encode("ascii")


def is_text(line: bytes) -> bool:
    """Whether a line that is no status line is text at all: noise of a wrong baud rate is not."""
    words = line.strip()
    return len(words) > 3 and words.isascii() and words.decode("ascii").isprintable()


class LineSplitter:
    """Cuts a stream of bytes into lines at LF; what grows beyond any status line is dropped up to the next LF."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_skipping = False
        self.overlong = 0

    def clear(self) -> None:
        """Forget the bytes of an unfinished line."""
        self._rest, self._is_skipping = b"", False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes and return the lines that they complete, without LF."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines and self._is_skipping:
            lines, self._is_skipping = lines[1:], False
        if len(self._rest) > MAX_LINE_BYTES:
            self.overlong += not self._is_skipping
            self._rest, self._is_skipping = b"", True
        return lines
