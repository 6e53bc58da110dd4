"""A hand that is helped."""

import numpy as np

from featherweight.robot.challenge.shared import SHARE, SharedLeader
from featherweight.robot.contract import Teleoperator, keyed_angles
from featherweight.robot.kinematics import table_top, tool_point


class Fixed(Teleoperator):
    name = id = "fixed"
    is_connected = True

    def __init__(self, angles):
        self.angles = angles

    def connect(self, calibrate=True):
        pass

    def disconnect(self):
        pass

    def get_action(self):
        return None if self.angles is None else keyed_angles(self.angles)


def test_the_height_of_the_tool_can_stay_with_the_hand():
    above, below = (np.degrees(table_top([0.17, 0.02, height])) for height in (0.065, 0.055))
    action = SharedLeader(Fixed((*above, 60)), Fixed((*below, 60)), keeps_height=True).get_action()
    tools = [tool_point(np.radians(joints)) for joints in (above, list(action.values())[:5])]
    # The policy wants to be 10 mm lower; what it may still do is along the table, to first order.
    assert abs(tools[1][2] - tools[0][2]) < 0.001
    beside = np.degrees(table_top([0.17, 0.04, 0.065]))
    action = SharedLeader(Fixed((*above, 60)), Fixed((*beside, 60)), keeps_height=True).get_action()
    tool = tool_point(np.radians(list(action.values())[:5]))
    assert tool[1] > 0.03 and abs(tool[2] - 0.065) < 0.002


def test_a_policy_helps_where_it_agrees_and_leaves_the_gripper_and_the_way_to_the_hand():
    hand, policy = Fixed((10.0, 0, 0, 0, 0, 60)), Fixed((11.0, 0, 0, 0, 0, -45))
    shared = SharedLeader(hand, policy)
    action = shared.get_action()
    assert 10.9 * SHARE + 10 * (1 - SHARE) - 0.2 < action["shoulder_pan.pos"] < 10 + SHARE
    assert action["gripper.pos"] == 60
    policy.angles = (90.0, 0, 0, 0, 0, 0)
    assert abs(shared.get_action()["shoulder_pan.pos"] - 10) < 0.01
    policy.angles = None
    assert shared.get_action() == hand.get_action()
    policy.angles = (30.0, 0, 0, 0, 0, 0)
    wide = SharedLeader(hand, policy, 0.9, 40.0)
    assert wide.get_action()["shoulder_pan.pos"] > 10 + 0.6 * 20 > shared.get_action()["shoulder_pan.pos"]
    hand.angles = None
    assert shared.get_action() is None
