"""One port, several devices."""

import sys
import time

import pytest

from featherweight import robot as fwr
from featherweight.errors import DeviceError
from featherweight.robot.kit import JOINT_KEYS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def test_one_board_has_one_driver_and_a_leader_that_stays_does_not_keep_it_moving():
    robot, leader = fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:a")), fwr.PotLeader(fwr.PotLeaderConfig(port="sim:a"))
    with leader:
        robot.connect()
        other = fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:a", lookahead_deg=5))
        with pytest.raises(DeviceError, match="is driven by another UMIRobot of this program"):
            other.connect()
        robot.send_action(dict.fromkeys(JOINT_KEYS, 60.0))
        time.sleep(0.3)
        robot.disconnect()
        time.sleep(0.1)
        settled = leader._link.newest.status.q_deg
        time.sleep(0.3)
        assert leader._link.newest.status.q_deg == settled and leader.get_action() is not None
        with other, fwr.UMIRobot(fwr.UMIRobotConfig(port="sim:b")) as second:
            assert other.link.core.target.lookahead_deg == 5 and second.reported_deg() == (0,) * 6
