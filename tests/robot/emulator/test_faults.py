"""Faults are seeded."""

from robot_kit_run import run

from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.faults import FaultConfig
from featherweight.robot.protocol import parse_status


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
