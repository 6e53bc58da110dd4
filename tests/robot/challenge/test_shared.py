"""A hand that is helped."""

from featherweight.robot.challenge.shared import SHARE, SharedLeader
from featherweight.robot.contract import Teleoperator, keyed_angles


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
    hand.angles = None
    assert shared.get_action() is None
