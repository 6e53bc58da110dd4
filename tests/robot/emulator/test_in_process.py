"""An emulated kit as a port object."""

import time

from featherweight.robot.emulator.in_process import InProcessPort
from featherweight.robot.protocol import parse_status


def test_lines_come_in_real_time_and_old_ones_can_be_dropped(kit):
    port = InProcessPort(kit, time_scale=10.0)
    start_s, data = time.monotonic(), b""
    while data.count(b"\n") < 50:
        data += port.read(1)
    assert time.monotonic() - start_s > 50 * 0.0114 / 10
    assert all(parse_status(line) for line in data.split(b"\n")[:-1])
    port.write(b"5 0 0 0 0 0\n")
    time.sleep(0.05)
    port.reset_input_buffer()
    assert port.in_waiting == 0
    while b"6 5 0 0 0 0 0 6" not in data:
        data = port.read(1)
    port.close()
