"""Fira against GaLoreAdamW's option and against a slow twin."""

import pytest
import torch
from low_rank_twins import GaLore, assert_follows, gradients, is_left
from torch import nn

from featherweight.errors import ConfigError
from featherweight.optim import Fira, GaLoreAdamW

POLICIES = ["rotate", "keep"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"proj_type": "full"}, {"state_bits": 8, "moment_policy": "keep"}])
def test_the_preset_is_galore_with_the_fira_residual_bit_by_bit(dtype, options):
    results = []
    for optimizer_type, more in ((Fira, {}), (GaLoreAdamW, {"residual": "fira"})):
        weights = [nn.Parameter(torch.full(shape, 0.5, dtype=dtype)) for shape in ((70, 60), (3, 8, 10), (5,))]
        optimizer = optimizer_type(weights, lr=0.01, rank=4, update_proj_gap=3, weight_decay=0.1, **options, **more)
        assert optimizer.param_groups[0]["scale"] == 0.25
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(dtype)
            optimizer.step()
        results.append((weights, optimizer.state_bytes()))
    assert results[0][1] == results[1][1]
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(7, 11), (11, 7), (8, 8)])
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
@pytest.mark.parametrize("policy", POLICIES)
def test_steps_over_refreshes_equal_the_twin(shape, proj_type, policy):
    left = is_left(shape, proj_type)
    options = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "scale": 0.25}
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    optimizer = Fira(
        [{"params": [weight], "rank": 3, "proj_type": proj_type}],
        update_proj_gap=4, basis_method="svd", moment_policy=policy, **options,
    )  # fmt: skip
    twin = GaLore(start if left else start.T, 3, 4, rotates=policy == "rotate", has_residual=True, **options)
    # The last norm is stored in float32 (6e-8); growth is limited at several of the ten steps. Mutations: factors over
    # the wrong axis, a residual without Adam's factor, or decay in the scale differ by 1e-2.
    assert_follows(optimizer, weight, twin, gradients(shape, 10, seed=2), left, rtol=1e-6)
    assert 0 < twin.limit.times_reached < 9


def test_the_state_is_galores_and_one_norm():
    sizes = []
    for optimizer_type in (Fira, GaLoreAdamW):
        weight = nn.Parameter(torch.ones(12, 20))
        sizes.append(optimizer_type([{"params": [weight], "rank": 3}]).state_bytes())
    assert sizes[0] - sizes[1] == 4


def test_an_unknown_residual_is_refused_by_name():
    with pytest.raises(ConfigError, match="residual='firra' is not allowed; expected None or one of"):
        Fira([nn.Parameter(torch.ones(6, 8))], rank=2, residual="firra")
