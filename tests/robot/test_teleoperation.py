"""One leader, one follower, one computer."""

import sys

import pytest

from featherweight import robot as fwr

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def test_a_leader_that_fails_holds_the_arm_and_the_session_goes_on():
    calls = {"count": 0}

    def script(time_s):
        calls["count"] += 1
        if 0.5 < time_s < 1.0:
            raise OSError("cable")
        return (10, 0, 0, 0, 0, 0)

    modes = []
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot, fwr.ScriptedLeader(script) as leader:
        result = fwr.teleoperate(leader, robot, duration_s=1.6, on_step=lambda c: modes.append(c.mode))

    assert fwr.Mode.HOLD in modes and result.mode is fwr.Mode.ACTIVE
    assert result.counters["faulty leader"] > 20


def test_a_leader_that_lets_go_holds_the_arm_at_once():
    from featherweight.robot.web.leader import WebLeader, Wish

    leader, modes = WebLeader(), []
    leader.connect()

    def on_step(controller):
        steps = len(modes)
        leader.take(Wish((10.0, 0, 0, 0, 0, 0)) if steps < 30 else None)
        modes.append(controller.mode)
        return steps < 40

    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as robot:
        result = fwr.teleoperate(leader, robot, on_step=on_step)
    assert fwr.Mode.ACTIVE in modes[:31] and modes[33:] == [fwr.Mode.HOLD] * len(modes[33:])
    assert result.reason == "the operator let go"
