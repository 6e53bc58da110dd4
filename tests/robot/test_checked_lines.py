"""Lines with a number and a checksum."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.robot.checked_lines import (
    CheckedStatus,
    checksum,
    format_announcement,
    format_checked_command,
    format_checked_status,
    parse_announcement,
    parse_checked_command,
    parse_checked_status,
    parse_plain_command,
)
from featherweight.robot.protocol import MAX_LINE_BYTES, Status, parse_status

ANGLES = st.tuples(*[st.integers(-90, 90)] * 6)
STATUS = CheckedStatus(Status((10, -20, 30, -40, 90, -90), (0, 1023, 512, 3, 4, 5), (1, 0, 1, 1, 0)), 255, 7, 12, True)


def test_golden_lines():
    assert format_announcement((1, -2, 3, 0, 0, 90)) == b"V 1 -2 3 0 0 90\n"
    assert checksum(b"123456789") == b"CJLB"  # 0x29b1
    assert (
        format_checked_command(261, (0, 1, -2, 3, 90, -90))
        == b"C 5 0 1 -2 3 90 -90 " + checksum(b"C 5 0 1 -2 3 90 -90 ") + b"\n"
    )
    line = format_checked_status(STATUS)
    assert line.startswith(b"6 10 -20 30 -40 90 -90 6 0 1023 512 3 4 5 5 1 0 1 1 0 4 255 7 12 1 UM2 ")


@given(ANGLES, st.integers(0, 255))
def test_commands_come_back_and_no_flipped_bit_does(angles, number):
    line = format_checked_command(number, angles)
    assert parse_checked_command(line[:-1]) == (number, angles)
    for place in range(len(line) - 1):
        damaged = bytearray(line[:-1])
        damaged[place] ^= 1 << (place % 8)
        assert parse_checked_command(bytes(damaged)) is None


def test_a_status_comes_back_no_flipped_bit_does_and_the_plain_reader_takes_none_of_it():
    line = format_checked_status(STATUS)
    assert parse_checked_status(line) == STATUS and parse_status(line) is None
    for place in range(len(line) - 2):
        for bit in range(8):
            damaged = bytearray(line)
            damaged[place] ^= 1 << bit
            assert parse_checked_status(bytes(damaged)) is None


def test_the_longest_line_fits_into_the_splitter():
    longest = CheckedStatus(Status((-90,) * 6, (1023,) * 6, (1,) * 5), 255, 255, 255, True)
    assert len(format_checked_status(longest)) <= MAX_LINE_BYTES


@pytest.mark.parametrize("line", [b"V 1 2 3 4 5", b"V1 2 3 4 5 6", b"V 1 2 3 4 5 6 7", b"W 1 2 3 4 5 6"])
def test_what_is_no_announcement_is_none(line):
    assert parse_announcement(line) is None and parse_plain_command(line) is None
