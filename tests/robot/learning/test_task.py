"""Behaviour cloning as a task; `tests/contracts` holds it to what every task must do."""

import numpy as np
import pytest
import torch
from robot_demos import new_writer, write_episode

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.robot.learning.policy import load_policy
from featherweight.robot.learning.task import RobotTask, RobotTaskConfig
from featherweight.robot.recording.demo_dataset import DemoDataset
from featherweight.robot.recording.layout import robot_features
from featherweight.robot.recording.writer import DemoWriter

pytest.importorskip("mujoco")


@pytest.fixture(scope="module")
def task(expert_demos):
    return RobotTask(RobotTaskConfig(data=str(expert_demos), chunk=5, hidden=16, layers=1, held_out=0.25), seed=0)


def test_targets_are_the_next_actions_relative_to_the_state_and_weigh_nothing_beyond_the_episode(task, expert_demos):
    episode = DemoDataset(expert_demos).episode(0)
    length = len(episode["action"])
    rows = {name: values[:length] for name, values in task.train.items()}
    t = 40
    expected = episode["action"][t : t + 5] - episode["observation.state"][t]
    np.testing.assert_allclose(rows["targets"][t].numpy(), expected, atol=1e-5)
    assert rows["weights"][-3].tolist() == [1, 1, 1, 0, 0] and rows["weights"][0].sum() == 5
    assert task.describe()["train_episodes"] == 3 and task.describe()["held_out_episodes"] == 1


def test_the_loss_is_the_mean_error_in_deviations(task):
    policy = task.build_model()
    batch = next(task.batches("train", micro_batch_size=8, seed=0))
    with torch.no_grad():
        value, count = task.loss(policy, batch)
        chunks, targets = policy.normal_chunks(batch["features"]), policy.normal_targets(batch["targets"])
        expected = sum(
            float((chunks[i, w > 0] - targets[i, w > 0]).abs().mean()) for i, w in enumerate(batch["weights"])
        )
    assert count == 8 and float(value) == pytest.approx(expected, rel=1e-5)


def test_other_data_sets_are_refused_with_what_is_different(tmp_path):
    write_episode(new_writer(tmp_path / "wave"), 5)
    with pytest.raises(ConfigError, match=r"observation.environment_state=None of .* are other numbers"):
        RobotTask(RobotTaskConfig(data=str(tmp_path / "wave")), seed=0)
    DemoWriter(tmp_path / "other", 30, "so101", robot_features())
    with pytest.raises(ConfigError, match=r"robot_type=so101 of .* is another robot; expected umirobot"):
        RobotTask(RobotTaskConfig(data=str(tmp_path / "other")), seed=0)
    with pytest.raises(ConfigError, match=r"has no meta/info.json"):
        RobotTask(RobotTaskConfig(data=str(tmp_path / "nothing")), seed=0)


@pytest.mark.slow
def test_a_few_steps_learn_something_and_leave_a_policy_in_the_run_folder(expert_demos, tmp_path):
    recipe = {
        "task": {"name": "robot", "data": str(expert_demos), "held_out": 0.25, "hidden": 64},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "steps": 150,
        "micro_batch_size": 64,
        "max_grad_norm": None,
    }
    run = fw.train(recipe, out=tmp_path / "run", callbacks=[])
    assert load_policy(tmp_path / "run").config.chunk == 20
    before, after = run.summary.before_training["held_out_loss"], run.summary.held_out["held_out_loss"]
    assert after < 0.9 * before
