"""Gymnasium environments."""

import numpy as np
import pytest

from featherweight import robot as fwr
from featherweight.robot.kinematics import table_top
from featherweight.robot.kit import JOINT_KEYS
from featherweight.robot.sim.expert import pick_and_place


def test_environments_follow_gymnasium_s_rules_and_can_be_solved():
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    assert fwr.register_environments() == ["fw/UMIRobotReach-v0", "fw/UMIRobotPick-v0", "fw/UMIRobotChallenge-v0"]
    check_env(gymnasium.make("fw/UMIRobotReach-v0").unwrapped, skip_render_check=True)
    environment = gymnasium.make("fw/UMIRobotReach-v0")
    for seed in range(3):
        observation, _ = environment.reset(seed=seed)
        joints = np.degrees(table_top(observation["goal_m"]))
        action = dict(zip(JOINT_KEYS, map(np.float64, [*joints, 0]), strict=True))
        for _ in range(150):
            observation, reward, is_done, _, _ = environment.step(action)
            if is_done:
                break
        assert is_done and reward > -0.01


def test_pick_and_challenge_reward_what_they_say():
    gymnasium = pytest.importorskip("gymnasium")
    fwr.register_environments()
    environment = gymnasium.make("fw/UMIRobotChallenge-v0", cubes=1)
    observation, _ = environment.reset(seed=1)
    total, is_done = 0.0, False
    for target in pick_and_place(observation["cube_m"][0], observation["bin_m"]):
        _, reward, is_done, _, _ = environment.step(dict(zip(JOINT_KEYS, map(np.float64, target), strict=True)))
        total += reward
        if is_done:
            break
    assert total == 1.0 and is_done
