"""Real processes that are killed or stopped while the arm moves: how far does it go on? And the client of others."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featherweight import robot as fwr
from featherweight.robot.emulator.inputs import ConstantInputs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals and signals")

HOST = """
import math, sys, time
from featherweight import robot as fwr
robot = fwr.UMIRobot(fwr.UMIRobotConfig(port=sys.argv[1], id="kill"))
leader = fwr.ScriptedLeader(lambda t: tuple(60 * math.sin(1.3 * t + i) for i in range(5)) + (0.0,))
with robot, leader:
    print("ready", flush=True)
    fwr.teleoperate(leader, robot, safety=fwr.SafetyConfig(guard=False))
"""


class TrackingKit(fwr.EmulatedKit):
    """Remembers what the host could know: the angles of the last status line that was sent."""

    reported = (0,) * 6

    def read(self, now_us):
        from featherweight.robot.protocol import parse_status

        data = super().read(now_us)
        for line in data.split(b"\n"):
            status = parse_status(line)
            if status is not None:
                self.reported = status.q_deg
        return data


def kill_at_random_moments(count, how, seed):
    """Kill a teleoperating host `count` times; return the (6,) degrees that the joints of each arm went on."""
    chance, went_on = random.Random(seed), []
    for _ in range(count):
        kit = TrackingKit(boot_s=0.05, resets_on_open=False)
        with fwr.PseudoTerminal(kit) as terminal:
            host = subprocess.Popen([sys.executable, "-c", HOST, terminal.path], stdout=subprocess.PIPE, text=True)
            host.stdout.readline()
            time.sleep(chance.uniform(0.6, 2.5))
            os.kill(host.pid, how)
            at_kill = tuple(kit.firmware.current_deg)
            time.sleep(0.5)
            settled = tuple(kit.firmware.current_deg)
            time.sleep(0.3)
            assert tuple(kit.firmware.current_deg) == settled, "the arm goes on"
            went_on.append(tuple(abs(a - b) for a, b in zip(settled, at_kill, strict=True)))
            host.kill()
            host.communicate()
    return went_on


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_host_leaves_an_arm_that_stops_within_three_degrees(how):
    assert max(kill_at_random_moments(1, how, seed=0)[0]) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(("how", "count"), [(signal.SIGKILL, 100), (signal.SIGSTOP, 50)])
def test_a_hundred_dead_hosts_leave_arms_whose_every_joint_stops_within_three_degrees(how, count):
    went_on = kill_at_random_moments(count, how, seed=1)

    lines = [
        f"{how.name}, {count} hosts; joint: worst degrees, then hosts after which it went on by 0, 1, 2, 3 degrees"
    ]
    for joint, degrees in zip(fwr.JOINTS, zip(*went_on, strict=True), strict=True):
        lines.append(f"{joint} {max(degrees)} {[degrees.count(value) for value in range(4)]}")
    worst = [max(joints) for joints in went_on]
    lines.append(f"worst joint {max(worst)} {[worst.count(value) for value in range(4)]}")
    sys.stdout.write("\n".join(lines) + "\n")
    assert max(worst) <= 3


CLIENT = """
import json, sys, time
sys.path.insert(0, sys.argv[2])
from umirobot import UMIRobot
client = UMIRobot()
client.set_port(sys.argv[1])
goal, start, lines = [10, -20, 30, -40, 95, -95], time.time(), 0
result = {}
while time.time() - start < 4.5:
    client.set_qd(goal)
    client.update()
    lines += 1
    if client.get_q() is not None and list(client.get_q()) == [10, -20, 30, -40, 90, -90] and "reached_s" not in result:
        result["reached_s"] = time.time() - start
result["q"] = list(client.get_q())
result["volts"] = list(client.get_potentiometer_values())
result["inputs"] = list(client.get_digital_in_values())
result["updates"] = lines
print(json.dumps(result))
"""


@pytest.mark.slow
def test_the_official_client_drives_the_emulated_kit(tmp_path):
    """The package umirobot (GPL) runs in its own process, from its own folder; nothing of it is imported here."""
    folder = os.environ.get("FEATHERWEIGHT_UMIROBOT")
    if folder is None:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
        done = subprocess.run([*install, "umirobot==22.4.28", "pyserial"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"umirobot cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
        folder = str(tmp_path)
    pots, inputs = (0, 1023, 512, 300, 700, 10), (1, 0, 1, 1, 0)
    kit = fwr.EmulatedKit(ConstantInputs(pots, inputs), boot_s=0.0)
    with fwr.PseudoTerminal(kit) as terminal:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, terminal.path, folder], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["q"] == [10, -20, 30, -40, 90, -90]
    assert result["volts"] == pytest.approx([raw * 5 / 1023 for raw in pots])
    assert result["inputs"] == list(inputs)
    assert kit.firmware.counts.rejected == 0 and kit.firmware.counts.accepted > 75 * 3


def test_no_file_of_ours_imports_the_official_package():
    root = Path(fwr.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        assert "import umirobot" not in text and "from umirobot" not in text, path
