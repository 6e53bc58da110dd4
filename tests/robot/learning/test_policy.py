"""The policy's file, scales and shape."""

import json

import numpy as np
import pytest
import torch

from featherweight.errors import CheckpointError, ConfigError
from featherweight.robot.learning.policy import ChunkPolicy, PolicyConfig


@pytest.fixture
def policy():
    torch.manual_seed(0)
    policy = ChunkPolicy(PolicyConfig(chunk=4, hidden=8, layers=1))
    generator = torch.Generator().manual_seed(1)
    policy.fit_scales(torch.randn(50, 20, generator=generator), 3 + 7 * torch.randn(50, 4, 6, generator=generator))
    return policy


def test_predictions_are_degrees_and_targets_are_scaled_alike(policy):
    x = torch.randn(5, 20)
    degrees = policy(x)
    assert degrees.shape == (5, 4, 6)
    torch.testing.assert_close(policy.normal_targets(degrees), policy.normal_chunks(x))
    state = np.arange(6.0)
    np.testing.assert_allclose(policy.act(x[0].numpy(), state), degrees[0].detach().numpy() + state, rtol=1e-5)


def test_a_saved_policy_comes_back(policy, tmp_path):
    policy.save(tmp_path / "run" / "model", {"task": {"data": "demos"}})
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        again = ChunkPolicy.load(folder)
        assert again.config == policy.config
        saved = policy.state_dict()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in again.state_dict().items())


def test_missing_damaged_and_foreign_policies_are_one_sentence(policy, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no policy.json; expected a trained policy"):
        ChunkPolicy.load(tmp_path)
    policy.save(tmp_path)
    told = json.loads((tmp_path / "policy.json").read_text())
    told["policy"]["robot"] = "so101"
    (tmp_path / "policy.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="robot=so101 of .* is another kit"):
        ChunkPolicy.load(tmp_path)
    policy.save(tmp_path)
    (tmp_path / "policy.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ChunkPolicy.load(tmp_path)
