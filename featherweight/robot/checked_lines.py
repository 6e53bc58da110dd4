r"""The checked protocol of our own firmware: a number and a checksum on every line; announced by the host's first line.

The announcement is ``V q1..q6`` with the angles that the kit has just reported. The published firmware skips the letter
and reads a command that keeps the arm where it is; ours answers with lines of this form from then on:

``6 q1..q6 6 p1..p6 5 d1..d5 4 number accepted refused held UM2 SUM`` from the kit (CR LF), where q is the angle of now;
``C number q1..q6 SUM`` from the host (LF). SUM is the CRC-16 (polynomial 0x1021, start 0xffff) of all that stands
before it, as four letters A to P: no digit stands before the line end, so a kit that has fallen back to the published
reader takes no such line for a command.
"""

import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from featherweight.robot.protocol import Status, format_command, format_status, parse_status

NUMBERS = 256
"""Lines are numbered modulo this."""
WATCHDOG_S = 0.2
"""Silence of the host after which the kit holds its arm."""
MAX_ACCELERATION_DEG_S2 = 2500.0
"""Of the kit's own profile; stopping is at once."""

_STATUS = re.compile(rb"(.*5(?: [01]){5}) 4 (\d{1,3}) (\d{1,3}) (\d{1,3}) ([01]) UM2 ([A-P]{4})\r?\n?")
_COMMAND = re.compile(rb"C (\d{1,3})((?: -?\d{1,3}){6}) ([A-P]{4})")
_ANNOUNCEMENT = re.compile(rb"V((?: -?\d{1,3}){6})")
_PLAIN = re.compile(rb"-?\d{1,3}(?: -?\d{1,3}){5}")


@dataclass(frozen=True, slots=True)
class CheckedStatus:
    """What one checked status line says.

    Attributes:
        status: angles, potentiometers and inputs, as in a plain line.
        number: of the line, 0..255.
        accepted: number of the newest command that the kit obeys.
        refused: lines that it refused, modulo 256.
        is_held: whether the kit holds its arm because the host was silent.
    """

    status: Status
    number: int
    accepted: int
    refused: int
    is_held: bool


def checksum(data: bytes) -> bytes:
    """Return the CRC-16 of bytes as four letters.

    Example:
        >>> checksum(b"123456789")  # 0x29b1, the check value of CRC-16/CCITT-FALSE
        b'CJLB'
    """
    value = binascii.crc_hqx(data, 0xFFFF)
    return bytes(ord("A") + (value >> shift & 15) for shift in (12, 8, 4, 0))


def format_announcement(reported_deg: Sequence[int]) -> bytes:
    """Write the line that offers the checked protocol and moves nothing."""
    return b"V " + format_command(reported_deg)


def format_checked_command(number: int, angles_deg: Sequence[int]) -> bytes:
    """Write a command with its number (taken modulo 256) and checksum.

    Raises:
        ConfigError: if there are not six whole numbers within the limits.
    """
    text = b"C %d %s " % (number % NUMBERS, format_command(angles_deg).rstrip(b"\n"))
    return text + checksum(text) + b"\n"


def format_checked_status(checked: CheckedStatus) -> bytes:
    """Write a status line as the firmware prints it."""
    text = format_status(checked.status).removesuffix(b"UMI\r\n")
    text += b"4 %d %d %d %d UM2 " % (checked.number, checked.accepted, checked.refused, checked.is_held)
    return text + checksum(text) + b"\r\n"


def parse_checked_status(line: bytes) -> CheckedStatus | None:
    """Read one line; None if anything about it is wrong, the checksum included."""
    match = _STATUS.fullmatch(line)
    if match is None or checksum(line[: match.start(6)]) != match[6]:
        return None
    status = parse_status(match[1] + b" UMI")
    if status is None:
        return None
    number, accepted, refused = (int(match[i]) for i in (2, 3, 4))
    return CheckedStatus(status, number, accepted, refused, match[5] == b"1")


def parse_checked_command(line: bytes) -> tuple[int, tuple[int, ...]] | None:
    """Read a command without its line end; None if it is wrong, else (number, (6,) angles)."""
    match = _COMMAND.fullmatch(line)
    if match is None or checksum(line[: match.start(3)]) != match[3] or int(match[1]) >= NUMBERS:
        return None
    return int(match[1]), tuple(map(int, match[2].split()))


def parse_announcement(line: bytes) -> tuple[int, ...] | None:
    """Read an announcement without its line end; None if it is none, else (6,) angles."""
    match = _ANNOUNCEMENT.fullmatch(line)
    return tuple(map(int, match[1].split())) if match else None


def parse_plain_command(line: bytes) -> tuple[int, ...] | None:
    """Read a plain command without its line end as the strict reader does: whole lines of six short numbers alone."""
    return tuple(map(int, line.split())) if _PLAIN.fullmatch(line) else None
