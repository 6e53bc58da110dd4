"""What tasks on demonstrations share."""

import pytest
import torch
from robot_demos import write_scene_episodes

from featherweight.errors import ConfigError
from featherweight.robot.learning.demonstrated import chunk_errors
from featherweight.robot.learning.task import RobotTask, RobotTaskConfig

pytest.importorskip("mujoco")


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    root = tmp_path_factory.mktemp("waves") / "demos"
    write_scene_episodes(root, episodes=4, frames=6)
    return root


def make(demos, **options):
    return RobotTask(RobotTaskConfig(data=str(demos), chunk=3, hidden=8, layers=1, **options), seed=0)


def test_actions_beyond_the_episode_weigh_nothing():
    normal, targets = torch.zeros(1, 3, 6), torch.ones(1, 3, 6)
    targets[:, 2] = 100.0
    assert chunk_errors(normal, targets, torch.tensor([[1.0, 1.0, 0.0]])).tolist() == [1.0]


def test_the_first_episodes_can_be_taken_alone_and_one_is_too_few(demos):
    assert make(demos, episodes=3).describe()["train_frames"] == 12
    assert make(demos).describe()["train_frames"] == 18
    write = demos.with_name("one")
    write_scene_episodes(write, episodes=1, frames=6)
    with pytest.raises(ConfigError, match="episodes=1 of .* are too few; expected at least 2"):
        make(write)


def test_a_task_starts_from_a_trained_policy_with_its_scales(demos, tmp_path):
    task = make(demos)
    before = task.build_model()
    with torch.no_grad():
        before.network[0].weight.add_(1.0)
        before.get_buffer("x_mean").add_(5.0)
    task.save_model(before, tmp_path / "run")
    started = make(demos, start_from=str(tmp_path / "run")).build_model()
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in started.state_dict().items())
    with pytest.raises(ConfigError, match="is a policy of another shape; expected that of this task"):
        RobotTask(RobotTaskConfig(data=str(demos), chunk=5, start_from=str(tmp_path / "run")), seed=0).build_model()
