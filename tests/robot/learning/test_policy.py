"""The policy's file, scales and shape."""

import json

import numpy as np
import pytest
import torch

from featherweight.errors import CheckpointError, ConfigError
from featherweight.robot.learning.bc import BCConfig, BCPolicy
from featherweight.robot.learning.policy import Seen, load_policy, scale_pictures
from featherweight.robot.learning.state import state_features


@pytest.fixture
def policy():
    torch.manual_seed(0)
    policy = BCPolicy(BCConfig(chunk=4, hidden=8, layers=1))
    generator = torch.Generator().manual_seed(1)
    policy.fit_scales(
        {
            "features": torch.randn(50, 20, generator=generator),
            "targets": 3 + 7 * torch.randn(50, 4, 6, generator=generator),
        }
    )
    return policy


def test_what_a_policy_gives_is_degrees_around_the_state(policy):
    scene, state = np.array([0.17, 0.02, 0.011, 1.0, 0.0, 0.05, 0.16]), np.arange(6.0)
    features = torch.from_numpy(state_features(state, scene).astype(np.float32))[None]
    expected = policy.predict({"features": features})[0].detach().numpy() + state
    np.testing.assert_allclose(policy.act(state, Seen(scene)), expected, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"scene=None; expected where cube and bin are"):
        policy.act(state, Seen())


def test_a_saved_policy_comes_back_as_the_kind_that_it_is(policy, tmp_path):
    policy.save(tmp_path / "run" / "model", {"task": {"data": "demos"}})
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        again = load_policy(folder)
        assert type(again) is BCPolicy and again.config == policy.config
        saved = policy.state_dict()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"robot": "so101"}, "robot=so101 of .* is another kit"),
        ({"actions": ["a.pos"]}, "is another kit, with actions .'a.pos'.; expected umirobot"),
        ({"features": ["cube_x", "moon"]}, r"features=.'moon'. of .* are unknown here"),
    ],
)
def test_policies_of_another_kit_are_one_sentence(policy, tmp_path, change, message):
    policy.save(tmp_path)
    told = json.loads((tmp_path / "policy.json").read_text())
    told["policy"] |= change
    (tmp_path / "policy.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=message):
        load_policy(tmp_path)


def test_missing_and_damaged_policies_are_one_sentence(policy, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no policy.json; expected a trained policy"):
        load_policy(tmp_path)
    policy.save(tmp_path)
    (tmp_path / "policy.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_policy(tmp_path)


def test_pictures_are_scaled_by_the_means_of_what_a_new_pixel_covers():
    picture = torch.arange(4 * 8 * 3, dtype=torch.uint8).reshape(1, 4, 8, 3)
    small = scale_pictures(picture, (2, 4))
    assert small.dtype == torch.uint8 and small.shape == (1, 3, 2, 4)
    assert small[0, 0, 0, 0] == round(float(picture[0, :2, :2, 0].float().mean()))
    assert torch.equal(scale_pictures(picture, (4, 8)), picture.movedim(-1, 1))


def test_what_never_moved_in_the_demonstrations_does_not_drown_all_else(policy):
    features = torch.zeros(9, 20)
    features[:, 0] = torch.arange(9.0)
    policy.fit_scales({"features": features, "targets": torch.zeros(9, 4, 6)})
    assert policy.normal_features(features + 1.0).abs().max() == 10.0
    assert float(policy.normal_targets(torch.ones(1, 4, 6)).max()) == pytest.approx(10.0)
