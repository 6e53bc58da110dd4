"""ACT: what its latent vector carries, what it sees, and its options."""

import numpy as np
import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.robot.learning.act import ACTConfig, ACTPolicy
from featherweight.robot.learning.policy import Seen, load_policy
from featherweight.robot.learning.state import PROPRIOCEPTION

SMALL = {"chunk_size": 4, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16, "latent_dim": 3, "dropout": 0.0}
SEEING = {"features": list(PROPRIOCEPTION), "cameras": ["front"], "picture_height_px": 24, "picture_width_px": 32}


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return ACTPolicy(ACTConfig(**SMALL, **SEEING))


def batch(count=2):
    generator = torch.Generator().manual_seed(1)
    return {
        "features": torch.randn(count, len(PROPRIOCEPTION), generator=generator),
        "picture.front": torch.randint(0, 255, (count, 3, 24, 32), generator=generator, dtype=torch.uint8),
        "targets": torch.randn(count, 4, 6, generator=generator),
        "weights": torch.ones(count, 4),
    }


def test_a_latent_vector_changes_the_actions_and_none_is_its_mean(policy):
    seen = policy.look(batch())[:2]
    none = policy.normal_chunks(*seen)
    torch.testing.assert_close(policy.normal_chunks(*seen, torch.zeros(2, 3)), none)
    assert not torch.allclose(policy.normal_chunks(*seen, torch.ones(2, 3)), none)


def test_the_encoder_of_actions_does_not_see_beyond_the_episode(policy):
    rows = batch()
    rows["weights"][:, 2:] = 0
    features = policy.look(rows)[0]
    mean, log_variance = policy.encode_style(rows, features)
    assert mean.shape == log_variance.shape == (2, 3)
    rows["targets"][:, 2:] += 100
    torch.testing.assert_close(policy.encode_style(rows, features)[0], mean)
    rows["targets"][:, :2] += 1
    assert not torch.allclose(policy.encode_style(rows, features)[0], mean)


def test_a_policy_that_learns_places_is_told_them_in_training_and_sees_its_own_afterwards():
    torch.manual_seed(0)
    policy = ACTPolicy(ACTConfig(**SMALL, **SEEING, sees_places=True))
    rows = {**batch(), "places": torch.tensor([[0.15, 0.0, 0.1, 0.12], [0.2, 0.02, 0.1, -0.12]])}
    policy.fit_scales(rows)
    told = {**rows, "places": rows["places"] + 0.05}
    policy.train()
    assert not torch.allclose(policy(rows), policy(told))
    policy.eval()
    torch.testing.assert_close(policy(rows), policy(told))
    picture = {**rows, "picture.front": 255 - rows["picture.front"]}
    assert not torch.allclose(policy.look(rows)[2], policy.look(picture)[2])


def test_an_act_policy_acts_on_pictures_of_any_size_and_comes_back_from_its_file(policy, tmp_path):
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    chunk = again.act((10.0,) * 6, Seen(pictures={"front": picture}))
    assert chunk.shape == (4, 6) and again.config == policy.config and again.decay == 0.01 and again.ask_every == 1
    np.testing.assert_array_equal(chunk, policy.act((10.0,) * 6, Seen(pictures={"front": picture})))
    assert not np.allclose(chunk, policy.act((10.0,) * 6, Seen(pictures={"front": 255 - picture})))
    with pytest.raises(ConfigError, match=r"camera=front is not there; expected .'front'."):
        policy.act((10.0,) * 6, Seen(np.zeros(7)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide dim_model=128"),
        ({"n_action_steps": 30, "temporal_ensemble_coeff": None}, "n_action_steps=30 is more than chunk_size=20"),
        ({"n_action_steps": 5}, "n_action_steps=5 leaves nothing to blend"),
        ({"chunk": 5}, "chunk"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        ACTConfig.parse(options, where="act")
