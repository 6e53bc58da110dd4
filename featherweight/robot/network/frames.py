"""Command and state frames: a fixed little-endian layout with a CRC-32 over everything before it.

Head: magic ``FWT1``, u8 type, u8 flags, u16 number of joints, u64 session, u64 sequence number, i64 time of sending on
the sender's monotonic clock (ns), i64 newest stamp seen of the other side (ns), u32 time for which it was held (us);
then one f32 of degrees per joint. A state frame adds u64 last accepted sequence number and i64 when it came. Then u32
CRC-32.
"""

import struct
import zlib
from dataclasses import dataclass

from featherweight.robot.kit import SERVOS
from featherweight.robot.safety.mode import Mode

MAGIC = b"FWT1"
COMMAND, STATE = 1, 2
_HEAD = struct.Struct("<4sBBHQQqqI")
_ANGLES = struct.Struct(f"<{SERVOS}f")
_ACCEPTED = struct.Struct("<Qq")
_CRC = struct.Struct("<I")
COMMAND_BYTES = _HEAD.size + _ANGLES.size + _CRC.size
STATE_BYTES = COMMAND_BYTES + _ACCEPTED.size
_MODE_BITS, _LIMIT_BIT, _LOST_BIT = 0x07, 0x08, 0x10


class FrameError(ValueError):
    """Bytes that are no frame; the message is the reason, as counters use it."""


@dataclass(frozen=True, slots=True)
class CommandFrame:
    """What an operator sends.

    Attributes:
        session: 64-bit random number of the operator's session.
        sequence: rises by one with every frame.
        sent_ns: on the operator's monotonic clock.
        echo_ns: newest `sent_ns` of the follower that the operator has seen; 0 for none.
        hold_us: how long the operator had it when this frame was sent.
        angles_deg: (6,) wanted degrees.
    """

    session: int
    sequence: int
    sent_ns: int
    echo_ns: int
    hold_us: int
    angles_deg: tuple[float, ...]

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        return _seal(_pack(COMMAND, 0, self), b"")

    @classmethod
    def decode(cls, data: bytes) -> "CommandFrame":
        """Read a frame.

        Raises:
            FrameError: if size, magic, type, number of joints or CRC is wrong.
        """
        return cls(*_unpack(data, COMMAND, COMMAND_BYTES)[1])


@dataclass(frozen=True, slots=True)
class StateFrame:
    """What a follower sends.

    Attributes:
        session: 64-bit random number of the follower's start.
        sequence: rises by one with every frame.
        sent_ns: on the follower's monotonic clock.
        echo_ns: newest `sent_ns` of the operator that was accepted; 0 for none.
        hold_us: how long the follower had it when this frame was sent.
        angles_deg: (6,) reported degrees.
        mode: of the follower.
        limits_hit: whether the newest command was changed by limits or guard.
        is_lost: whether the robot's own link is lost, so that the angles are old.
        accepted_sequence: newest accepted command.
        accepted_ns: when it came, on the follower's clock.
    """

    session: int
    sequence: int
    sent_ns: int
    echo_ns: int
    hold_us: int
    angles_deg: tuple[float, ...]
    mode: Mode = Mode.IDLE
    limits_hit: bool = False
    is_lost: bool = False
    accepted_sequence: int = 0
    accepted_ns: int = 0

    def encode(self) -> bytes:
        """Return the frame's bytes."""
        flags = int(self.mode) | _LIMIT_BIT * self.limits_hit | _LOST_BIT * self.is_lost
        return _seal(_pack(STATE, flags, self), _ACCEPTED.pack(self.accepted_sequence, self.accepted_ns))

    @classmethod
    def decode(cls, data: bytes) -> "StateFrame":
        """Read a frame.

        Raises:
            FrameError: if size, magic, type, number of joints, mode or CRC is wrong.
        """
        flags, fields = _unpack(data, STATE, STATE_BYTES)
        accepted = _ACCEPTED.unpack_from(data, _HEAD.size + _ANGLES.size)
        if flags & _MODE_BITS > max(Mode):
            raise FrameError("mode")
        return cls(*fields, Mode(flags & _MODE_BITS), bool(flags & _LIMIT_BIT), bool(flags & _LOST_BIT), *accepted)


def _pack(kind: int, flags: int, frame: CommandFrame | StateFrame) -> bytes:
    head = _HEAD.pack(
        MAGIC,
        kind,
        flags,
        SERVOS,
        frame.session,
        frame.sequence,
        frame.sent_ns,
        frame.echo_ns,
        min(frame.hold_us, 2**32 - 1),
    )
    return head + _ANGLES.pack(*frame.angles_deg)


def _seal(body: bytes, rest: bytes) -> bytes:
    body += rest
    return body + _CRC.pack(zlib.crc32(body))


def _unpack(data: bytes, kind: int, size: int) -> tuple[int, tuple[int, int, int, int, int, tuple[float, ...]]]:
    if len(data) != size:
        raise FrameError("size")
    magic, found, flags, joints, session, sequence, sent_ns, echo_ns, hold_us = _HEAD.unpack_from(data)
    if magic != MAGIC or found != kind or joints != SERVOS:
        raise FrameError("magic")
    if _CRC.unpack_from(data, size - _CRC.size)[0] != zlib.crc32(data[: -_CRC.size]):
        raise FrameError("crc")
    return flags, (session, sequence, sent_ns, echo_ns, hold_us, _ANGLES.unpack_from(data, _HEAD.size))
