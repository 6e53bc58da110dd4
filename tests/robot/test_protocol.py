import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import ConfigError
from featherweight.robot.protocol import LineSplitter, Status, format_command, format_status, parse_status

EXAMPLE = b"6 0 0 0 0 0 0 6 512 512 512 512 512 512 5 1 1 1 1 1 UMI\r\n"
ANGLES = st.lists(st.integers(-90, 90), min_size=6, max_size=6)


def test_the_example_line_is_read_and_written_byte_for_byte():
    status = parse_status(EXAMPLE)

    assert status == Status((0,) * 6, (512,) * 6, (1,) * 5)
    assert format_status(status) == EXAMPLE
    assert len(EXAMPLE.split(b" ")) == 21 and EXAMPLE.split(b" ")[-1] == b"UMI\r\n"


@given(
    ANGLES, st.lists(st.integers(0, 1023), min_size=6, max_size=6), st.lists(st.integers(0, 1), min_size=5, max_size=5)
)
def test_every_status_survives_the_wire(q_deg, pots, digitals):
    status = Status(tuple(q_deg), tuple(pots), tuple(digitals))

    line = format_status(status)

    assert parse_status(line) == status
    assert 45 <= len(line) <= 75


@pytest.mark.parametrize(
    "line",
    [
        EXAMPLE.replace(b"UMI", b"UMX"),
        EXAMPLE.replace(b"6 0", b"5 0", 1),
        EXAMPLE.replace(b" 0 0", b" 0", 1),
        EXAMPLE.replace(b"512", b"1024", 1),
        EXAMPLE.replace(b" 0 ", b" 91 ", 1),
        EXAMPLE.replace(b" 0 ", b" -91 ", 1),
        EXAMPLE.replace(b" 1 UMI", b" 2 UMI"),
        EXAMPLE.replace(b" 0 ", b"  0 ", 1),
        EXAMPLE.replace(b"0", b"\xb2", 1),
        EXAMPLE.replace(b" 0 ", b" 0.5 ", 1),
        b"",
        EXAMPLE[:-10],
    ],
)
def test_a_line_with_anything_wrong_is_no_status(line):
    assert parse_status(line) is None


@given(ANGLES)
def test_a_command_holds_nothing_but_digits_signs_spaces_and_one_line_end(angles_deg):
    line = format_command(angles_deg)

    assert set(line) <= set(b"-0123456789 \n") and line.count(b"\n") == 1 and line.endswith(b"\n")
    assert 12 <= len(line) <= 24


@pytest.mark.parametrize(
    "angles", [[0] * 5, [0] * 7, [0, 0, 0, 0, 0, 91], [0.0] * 6, [None] * 6, [True] * 6, ["1"] * 6]
)
def test_what_the_firmware_would_misread_is_never_written(angles):
    with pytest.raises(ConfigError, match="expected 6 whole numbers from -90 to 90"):
        format_command(angles)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_lines_do_not_depend_on_how_the_bytes_come_in_pieces(pieces):
    one, many = LineSplitter(), LineSplitter()
    data = b"".join(pieces)

    together = [line for byte in data for line in one.feed(bytes([byte]))]
    apart = [line for piece in pieces for line in many.feed(piece)]

    # A long line may be dropped later when it comes in one piece; every status line is short and comes through.
    assert [line for line in together if len(line) <= 75] == [line for line in apart if len(line) <= 75]


def test_an_endless_line_takes_no_memory_and_the_next_line_is_read():
    splitter = LineSplitter()

    assert splitter.feed(b"x" * 10_000) == [] and splitter.overlong == 1
    assert splitter.feed(b"x\n" + EXAMPLE) == [EXAMPLE[:-1]]
