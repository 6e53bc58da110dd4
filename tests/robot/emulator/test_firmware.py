"""The firmware: how it reads numbers, loses bytes and prints lines; byte for byte."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robot_kit_run import run

from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.inputs import SineInputs

# (what comes, targets afterwards, accepted, rejected, silence in s). A line of 20 bytes takes 1.7 ms on the wire, a
# loop 11.4 ms: hence 0.02 s for "no silence", and 0.1 s around the seconds of the time-outs.
TABLE = [
    (b"10 -20 30 -40 90 -90\n", (10, -20, 30, -40, 90, -90), 1, 0, 0.0),
    (b"1 2 3 4 5 6\r\n", (0, 0, 0, 0, 0, 0), 0, 2, 6.0),
    (b"1 2 3 4 5 6\r\n7 8 9 10 11 12\n", (7, 8, 9, 10, 11, 12), 1, 1, 0.0),
    (b"1.5 2.5 3.5 4.5 5.5 6.5\n", (4, 5, 5, 5, 6, 5), 1, 1, 0.0),
    (b"None None None None None None\n", (0, 0, 0, 0, 0, 0), 0, 1, 6.0),
    (b"1 2 3\n", (0, 0, 0, 0, 0, 0), 0, 1, 3.0),
    (b"5-3 1 2 3 4\n", (5, -3, 1, 2, 3, 4), 1, 0, 0.0),
    (b"--5 1 2 3 4\n", (0, -5, 1, 2, 3, 4), 1, 0, 0.0),
    (b"- 1 2 3 4 5\n", (0, 1, 2, 3, 4, 5), 1, 0, 0.0),
    (b"70000 40000 1 2 3 4\n", (90, -90, 1, 2, 3, 4), 1, 0, 0.0),
    (b"1020 3 4 5 6 7\n", (90, 3, 4, 5, 6, 7), 1, 0, 0.0),
    (b"95 -95 0 0 0 0\n", (90, -90, 0, 0, 0, 0), 1, 0, 0.0),
    (b"abc 1, 2; 3 x 4 5 6\n", (1, 2, 3, 4, 5, 6), 1, 0, 0.0),
]


@pytest.mark.parametrize(
    ("data", "target", "accepted", "rejected", "silence_s"), TABLE, ids=[str(row[0]) for row in TABLE]
)
def test_the_number_reader_does_what_the_firmware_does(data, target, accepted, rejected, silence_s):
    kit = EmulatedKit(boot_s=0)

    silence, _ = run(kit, data)

    assert tuple(kit.firmware.target_deg) == target
    assert (kit.firmware.counts.accepted, kit.firmware.counts.rejected) == (accepted, rejected)
    assert silence == pytest.approx(silence_s, abs=0.1)


def test_more_unread_bytes_than_the_ring_holds_are_lost():
    kit = EmulatedKit(boot_s=1.0)  # nobody reads during the boot
    kit.open(0)

    kit.write(0, b"x" * 100)
    kit.read(500_000)

    assert kit.firmware.counts.overflowed_bytes == 100 - 63


# The first 100 status lines for sine inputs with seeded noise and one command; mutation: any change of timing,
# rounding, order or format.
GOLDEN = Path(__file__).parent / "data" / "status_lines.txt"


def test_the_first_hundred_lines_are_golden():
    kit = EmulatedKit(SineInputs(noise=3.0, seed=7), boot_s=0)

    _, output = run(kit, b"10 -20 30 -40 90 -90\n", seconds=2.0)
    lines = output.splitlines(keepends=True)[:100]

    assert len(lines) == 100
    assert b"".join(lines) == GOLDEN.read_bytes()


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=10_000))
def test_no_bytes_crash_the_firmware_or_move_it_out_of_range(data):
    kit = EmulatedKit(boot_s=0)

    run(kit, data, seconds=1.5, step_us=10_000)

    assert all(abs(angle) <= 90 for angle in (*kit.firmware.target_deg, *kit.firmware.current_deg))
