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
