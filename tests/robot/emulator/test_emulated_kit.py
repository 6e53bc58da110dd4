"""The kit as its port shows it: rates and resets."""

from robot_kit_run import run

from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.protocol import parse_status


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
