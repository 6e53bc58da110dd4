"""The board under both firmwares: ring, clock, arrivals."""

import pytest

from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.kit import BYTE_US


@pytest.mark.parametrize(("firmware", "kept"), [("published", 63), ("own", 127)])
def test_bytes_arrive_one_after_the_other_at_the_baud_rate_and_a_reset_loses_them(firmware, kept):
    kit = EmulatedKit(boot_s=1.0, firmware=firmware)
    kit.open(0)
    kit.write(0, b"x" * 150)
    kit.read(BYTE_US * 40)
    assert kit.firmware.counts.overflowed_bytes == 0
    kit.read(500_000)
    assert kit.firmware.counts.overflowed_bytes == 150 - kept
    kit.open(500_000)
    kit.read(2_000_000)
    assert kit.firmware.counts.rejected == 0
