"""The model of an eager hand: smooth on a quick line, swinging about its aim on a slow one."""

from collections import deque

import numpy as np

from featherweight.robot.challenge.eager import EagerHand
from featherweight.robot.contract import keyed_angles
from featherweight.robot.kinematics.dh import tool_point

SCENE = np.array([0.17, 0.02, 0.011, 1.0, 0.0, 0.0, 0.17])


def lead(delay_s, seconds=8.0):
    """Let the hand lead an arm that follows after a tenth of a second and is seen late; return (n, 3) tool points."""
    now_s, late = [0.0], deque([(0.0,) * 6] * (7 + round(60 * delay_s)))
    hand, angles = EagerHand(lambda: SCENE, lambda: now_s[0]), []
    with hand:
        for i in range(round(60 * seconds)):
            now_s[0] = i / 60
            hand.send_feedback(keyed_angles(late.popleft()))
            late.append(tuple(hand.get_action().values()))
            angles.append(late[0])
    return tool_point(np.radians(np.array(angles)[:, :5]))


def overshoot_m(tool):
    """Return how far the tool goes beyond the cube, on the way from the base to it."""
    return float(np.hypot(tool[:, 0], tool[:, 1])[60:].min()) - float(np.hypot(*SCENE[:2]))


def test_delay_makes_the_hand_swing_about_its_aim():
    quick, slow = lead(0.0), lead(0.3)
    # It comes from outside, 250 mm from the base, and swings inwards of the cube.
    assert overshoot_m(quick) > -0.02 and overshoot_m(slow) < overshoot_m(quick) - 0.015
    # On a quick line it is where it wants to be, and goes on to the cube.
    assert (np.linalg.norm(quick[:, :2] - SCENE[:2], axis=1)[-60:] < 0.01).all() and quick[:, 2].min() < 0.02
