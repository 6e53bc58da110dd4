"""The expert's demonstrations."""

import numpy as np
import pytest

from featherweight.robot.recording.check import check
from featherweight.robot.recording.demo_dataset import DemoDataset
from featherweight.robot.recording.demonstrations import SCENE_KEY, demonstrate, expert_writer
from featherweight.robot.sim.session import SCENE_NAMES

pytest.importorskip("mujoco")


def test_demonstrations_hold_what_was_done_through_the_safety_pipeline(expert_demos):
    assert check(expert_demos).problems == []
    data = DemoDataset(expert_demos)
    assert len(data.episodes) == 4 and data.features[SCENE_KEY]["names"] == list(SCENE_NAMES)
    episode = data.episode(0)
    # The cube ends in the bin, and the arm never goes faster than the firmware, whatever the action says.
    end = episode[SCENE_KEY][-1]
    assert np.abs(end[:2] - end[5:]).max() < 0.04
    assert np.abs(np.diff(episode["observation.state"], axis=0)).max() <= 88 / 30 + 1
    # The gripper is told to close at once; the other joints are led along.
    assert np.abs(episode["action"] - episode["observation.state"])[:, :5].max() < 30
    assert np.allclose(np.diff(episode["observation.t_mono"]), 1 / 30, atol=1 / 60 + 1e-3)


def test_pictures_of_the_scene_are_recorded_in_step(tmp_path, graphics):
    writer = expert_writer(tmp_path / "demos", ("front",), (48, 64))
    assert demonstrate(writer, [0], cameras=("front",)) == 1
    data = DemoDataset(tmp_path / "demos")
    first, last = data[0]["observation.images.front"], data[len(data) - 1]["observation.images.front"]
    assert first.shape == (3, 48, 64) and np.abs(first - last).max() > 0.2
    assert check(tmp_path / "demos").problems == []


def test_an_expert_that_knows_the_errors_of_a_kit_succeeds_with_it(tmp_path, expert_demos):
    offsets = (3.0, -3.0, 4.0, 0.0, 2.0, 0.0)
    assert demonstrate(expert_writer(tmp_path / "other"), [0], zero_offset_deg=offsets) == 1
    here, there = (DemoDataset(root).episode(0)["action"] for root in (expert_demos, tmp_path / "other"))
    # Grasping and letting go are the last places that both reach, whatever SYNC did before.
    np.testing.assert_allclose(there[-1] - here[-1], offsets, atol=1e-4)
