"""The firmware: how it reads numbers, loses bytes and prints lines; byte for byte."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robot_kit_run import run
from robot_parse_table import TABLE

from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.inputs import SineInputs


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
