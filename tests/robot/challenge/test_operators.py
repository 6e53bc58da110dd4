"""The model of a hand, and a hand that is helped."""

import numpy as np

from featherweight.robot.challenge.operators import SHARE, HandModel, SharedLeader
from featherweight.robot.contract import Teleoperator, keyed_angles

SCENE = np.array([0.17, 0.02, 0.011, 1.0, 0.0, 0.0, 0.17])


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


def test_a_hand_waits_for_its_reaction_time_moves_and_looks_again():
    now_s = [0.0]
    hand = HandModel(lambda: SCENE, lambda: now_s[0])
    with hand:
        assert hand.get_action() is None
        hand.send_feedback(keyed_angles((0.0,) * 6))
        assert set(hand.get_action().values()) == {0.0} and hand.tries == 0
        seen = []
        for i in range(1, 60 * 25):
            now_s[0] = i / 60
            seen.append(tuple(hand.get_action().values()))
    assert seen[13] == (0.0,) * 6 and seen[30] != (0.0,) * 6 and hand.tries == 3
    steps = np.abs(np.diff(np.array(seen)[:, :5], axis=0)).max()
    assert steps < 90 / 30 + 1e-6


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
