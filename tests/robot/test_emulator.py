"""The emulated kit, row by row of what the firmware does with bytes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import ConfigError
from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.faults import FaultConfig
from featherweight.robot.emulator.inputs import ConstantInputs, CsvInputs, FileInputs, SineInputs
from featherweight.robot.protocol import parse_status

START_US = 100_000


def run(kit, data, seconds=10.0, step_us=1000):
    """Send bytes at 0.1 s; return (longest silence in s, all bytes) up to the end."""
    kit.open(0)
    kit.read(START_US)
    kit.write(START_US, data)
    now_us = last_us = START_US
    silence_us, output = 0, b""
    while now_us < START_US + seconds * 1e6:
        now_us += step_us
        got = kit.read(now_us)
        if got:
            silence_us, last_us, output = max(silence_us, now_us - last_us), now_us, output + got
    return silence_us / 1e6, output


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


def test_lines_come_at_88_a_second_and_an_arm_turns_as_fast():
    kit = EmulatedKit(boot_s=0)

    _, output = run(kit, b"90 0 0 0 0 0\n", seconds=1.0)
    angles = [parse_status(line).q_deg[0] for line in output.split(b"\n")[:-1]]

    assert 86 <= len(angles) <= 88
    assert max(b - a for a, b in zip(angles, angles[1:], strict=False)) == 1
    assert 84 <= angles[-1] <= 88


def test_bytes_appear_at_the_baud_rate():
    kit = EmulatedKit(boot_s=0)
    kit.open(0)

    first = kit.read(87 * 10 + 50)

    assert len(first) == 10  # the first line starts at 0


def test_opening_the_port_resets_the_board_and_its_arm():
    kit = EmulatedKit(boot_s=0.5)
    kit.open(0)
    kit.read(500_000)
    kit.write(500_000, b"20 0 0 0 0 0\n")
    kit.read(1_500_000)
    assert kit.firmware.current_deg[0] == 20

    kit.open(1_500_000)

    assert kit.firmware.current_deg[0] == 0
    assert kit.read(1_990_000) == b"" and kit.read(2_100_000) != b""


# The first 100 status lines for sine inputs with seeded noise and one command; mutation: any change of timing,
# rounding, order or format.
GOLDEN = Path(__file__).parent / "data" / "status_lines.txt"


def test_the_first_hundred_lines_are_golden():
    kit = EmulatedKit(SineInputs(noise=3.0, seed=7), boot_s=0)

    _, output = run(kit, b"10 -20 30 -40 90 -90\n", seconds=2.0)
    lines = output.splitlines(keepends=True)[:100]

    assert len(lines) == 100
    assert b"".join(lines) == GOLDEN.read_bytes()


def test_the_same_seed_and_bytes_give_the_same_faulty_output():
    faults = FaultConfig(
        bit_flip=0.1,
        drop=0.1,
        duplicate=0.1,
        truncate=0.05,
        merge=0.05,
        wrong_counts=0.05,
        non_ascii=0.05,
        stall=0.01,
        seed=3,
    )

    outputs = [run(EmulatedKit(boot_s=0, faults=faults), b"50 50 0 0 0 0\n", seconds=3.0) for _ in range(2)]

    assert outputs[0] == outputs[1]
    good = [parse_status(line + b"\n") for line in outputs[0][1].split(b"\n")]
    assert 0.3 < sum(status is not None for status in good) / len(good) < 0.9


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=10_000))
def test_no_bytes_crash_the_firmware_or_move_it_out_of_range(data):
    kit = EmulatedKit(boot_s=0)

    run(kit, data, seconds=1.5, step_us=10_000)

    assert all(abs(angle) <= 90 for angle in (*kit.firmware.target_deg, *kit.firmware.current_deg))


def test_inputs_come_from_files(tmp_path):
    table = tmp_path / "pots.csv"
    table.write_text("time_s,p1,p2,p3,p4,p5,p6\n0,1,2,3,4,5,6\n1,7,8,9,10,11,12\n2,0,0,0,0,0,0\n")
    live = tmp_path / "live"

    playback, shared = CsvInputs(table), FileInputs(live)

    assert playback.read(0.5)[0] == (1, 2, 3, 4, 5, 6) and playback.read(3.2)[0] == (7, 8, 9, 10, 11, 12)
    assert shared.read(0.0)[0] == (512,) * 6
    live.write_text("9 8 7 6 5 4 0 1 0 1 0\n1 2 3")
    assert shared.read(0.0) == ((9, 8, 7, 6, 5, 4), (0, 1, 0, 1, 0))


@pytest.mark.parametrize(
    "text", ["time_s,p1\n0,1\n", "time_s,p1,p2,p3,p4,p5,p6\n0,1,2,3,4,5,9999\n", "time_s,p1,p2,p3,p4,p5,p6\n", "", "x"]
)
def test_a_wrong_csv_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "pots.csv"
    path.write_text(text)

    with pytest.raises(ConfigError, match="pots.csv"):
        CsvInputs(path)


def test_readings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="from 0 to 1023"):
        ConstantInputs((0, 0, 0, 0, 0, 1024))
