"""Frames survive the wire; damaged ones do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.robot.network import CommandFrame, FrameError, StateFrame
from featherweight.robot.safety.mode import Mode

U64, I64, U32 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1)
ANGLES = st.lists(st.floats(width=32, allow_nan=False), min_size=6, max_size=6).map(tuple)


@given(U64, U64, I64, I64, U32, ANGLES)
def test_command_frames_survive_the_wire(session, sequence, sent_ns, echo_ns, hold_us, angles):
    frame = CommandFrame(session, sequence, sent_ns, echo_ns, hold_us, angles)

    assert CommandFrame.decode(frame.encode()) == frame
    assert len(frame.encode()) == 72


@given(U64, U64, I64, I64, U32, ANGLES, st.sampled_from(list(Mode)), st.booleans(), st.booleans())
def test_state_frames_survive_the_wire(session, sequence, sent_ns, echo_ns, hold_us, angles, mode, limits_hit, is_lost):
    frame = StateFrame(
        session, sequence, sent_ns, echo_ns, hold_us, angles, mode, limits_hit, is_lost, sequence, sent_ns
    )

    assert StateFrame.decode(frame.encode()) == frame


def test_every_single_flipped_bit_is_noticed():
    command = CommandFrame(7, 8, 9, 10, 11, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    state = StateFrame(7, 8, 9, 10, 11, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), Mode.ACTIVE, True, False, 12, 13)
    for frame in (command, state):
        data = frame.encode()
        for bit in range(8 * len(data)):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << (bit % 8)
            with pytest.raises(FrameError):
                type(frame).decode(bytes(broken))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_frame(data):
    for kind in (CommandFrame, StateFrame):
        with pytest.raises(FrameError):
            kind.decode(data)
