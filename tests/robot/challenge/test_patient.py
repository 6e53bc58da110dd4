"""The model of a patient hand: reaction time, speed, and one wait for each correction."""

from collections import deque

import numpy as np
import pytest

from featherweight.robot.challenge.hand import REACTION_S
from featherweight.robot.challenge.patient import OVER_CUBE_M, PatientHand
from featherweight.robot.challenge.run import parse_impairment, run_challenge
from featherweight.robot.contract import keyed_angles
from featherweight.robot.kinematics.dh import tool_point

SCENE = np.array([0.17, 0.02, 0.011, 1.0, 0.0, 0.0, 0.17])


def work(delay_s, seconds=14.0, seed=0):
    """Let a hand lead an arm that follows at once and is seen late; return (angles at 60 Hz, hand)."""
    now_s, late = [0.0], deque([(0.0,) * 6] * (1 + round(60 * delay_s)))
    hand, angles = PatientHand(lambda: SCENE, lambda: now_s[0], seed), []
    with hand:
        assert hand.get_action() is None  # it does not see the arm yet
        for i in range(round(60 * seconds)):
            now_s[0] = i / 60
            hand.send_feedback(keyed_angles(late.popleft()))
            angles.append(tuple(hand.get_action().values()))
            late.append(angles[-1])
    return np.array(angles), hand


def closing(angles):
    """Return when the gripper closes for the first time."""
    return int(np.argmax(angles[:, 5] < 0)) if (angles[:, 5] < 0).any() else None


def test_a_hand_reacts_late_moves_within_the_speed_of_the_arm_and_closes_over_the_cube():
    angles, hand = work(0.0)
    assert not angles[: round(60 * REACTION_S) - 1].any() and hand.moves >= 3
    # A servo turns by 87.6 degrees a second; the gripper is commanded at once.
    assert np.abs(np.diff(angles[:, :5], axis=0)).max() < 87.6 / 30
    tool = tool_point(np.radians(angles[closing(angles), :5]))
    assert np.linalg.norm(tool[:2] - SCENE[:2]) < 2 * OVER_CUBE_M and tool[2] < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_under_delay_each_move_waits_until_its_end_is_seen(seed):
    at_once, late = (closing(work(delay_s, seed=seed)[0]) for delay_s in (0.0, 0.5))
    # At least two moves are looked at before the gripper closes: over the cube, and beside it.
    # A look counts in thirtieths of a second, and may end two of them earlier.
    assert late - at_once >= 2 * (60 * 0.5 - 4)


def test_a_cube_in_the_bin_is_left_alone():
    now_s = [0.0]
    hand = PatientHand(lambda: np.array([0.0, 0.17, 0.011, 1, 0, 0.0, 0.17]), lambda: now_s[0])
    with hand:
        for i in range(200):
            now_s[0] = i / 60
            hand.send_feedback(keyed_angles((1.0,) * 6))
            assert set(hand.get_action().values()) == {1.0}


def test_a_second_of_delay_is_not_taken_for_a_cube_that_was_not_lifted():
    """The gripper's rest before the lift, seen late, once ended the look: the cube was let go and picked for ever."""
    pytest.importorskip("mujoco")
    score = run_challenge("hand", None, 10_001, parse_impairment("1000ms+-30,1%"), longest_s=40.0, max_age_ms=800)
    assert score.placed == 1 and score.drops == 0
