"""Our own firmware in virtual time; what both firmwares and the real binary have to do: tests/contracts."""

from robot_moves import move

from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.faults import FaultConfig
from featherweight.robot.virtual_robot import VirtualRobot


def test_a_reset_under_an_open_port_is_noticed_and_the_checked_protocol_comes_back():
    robot = VirtualRobot(EmulatedKit(boot_s=0.0, firmware="own"))
    robot.advance(0.2)
    move(robot, [30.0] * 6)
    robot.advance(1.0)
    before = robot.reported_deg()
    assert robot.core.checked is not None and before[0] > 10

    robot.kit.firmware.reset(robot.kit.firmware.now_us)
    robot.advance(1.5)

    assert robot.core.checked is not None and robot.core.statistics.restarts == 1
    assert max(abs(a - b) for a, b in zip(robot.reported_deg(), before, strict=True)) <= 3, "it stays where it was"


def test_damaged_commands_are_refused_and_the_arm_arrives_all_the_same():
    faults = FaultConfig(command_bit_flip=0.1, bit_flip=0.02, seed=3)
    robot = VirtualRobot(EmulatedKit(boot_s=0.0, firmware="own", faults=faults))
    robot.advance(0.3)
    move(robot, [20.0, -20.0, 10.0, 0.0, 5.0, 60.0])
    robot.advance(5.0)

    assert robot.reported_deg() == (20, -20, 10, 0, 5, 60)
    assert robot.kit.firmware.counts.rejected > 20 and robot.core.statistics.implausible_lines == 0


def test_the_arm_gets_faster_slowly_and_pulses_are_finer_than_a_degree():
    pulses = []
    kit = EmulatedKit(boot_s=0.0, firmware="own", on_pulse=lambda _, angles: pulses.append(angles[0]))
    robot = VirtualRobot(kit)
    robot.core.sync_speed_deg_s = 90.0
    robot.advance(0.3)
    pulses.clear()
    move(robot, [45.0] + [0.0] * 5)
    robot.advance(1.5)

    speeds = [b - a for a, b in zip(pulses, pulses[1:], strict=False)]
    gains = [b - a for a, b in zip(speeds, speeds[1:], strict=False)]
    # 2500 degrees a second squared are a third of a degree per loop and loop.
    assert max(gains) < 0.34 and 0.9 < max(speeds) <= 1.0 and pulses[-1] == 45
