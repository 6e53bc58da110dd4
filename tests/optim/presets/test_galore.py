"""GaLoreAdamW against a slow twin over refreshes, and its moments at a refresh for every width of the basis."""

import pytest
import torch
from low_rank_twins import GaLore, assert_follows, gradients, is_left
from torch import nn

from featherweight.optim import GaLoreAdamW

OPTIONS = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "scale": 0.25}


@pytest.mark.parametrize("shape", [(7, 11), (11, 7), (8, 8)])
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
@pytest.mark.parametrize("policy", ["rotate", "keep"])
def test_steps_over_refreshes_equal_the_twin(shape, proj_type, policy):
    left = is_left(shape, proj_type)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    optimizer = GaLoreAdamW(
        [{"params": [weight], "rank": 3, "proj_type": proj_type}],
        update_proj_gap=4, basis_method="svd", moment_policy=policy, **OPTIONS,
    )  # fmt: skip
    twin = GaLore(start if left else start.T, 3, 4, rotates=policy == "rotate", **OPTIONS)
    # Float64. Mutations: moments that stay where they should turn, old^T new, a variance without its mean.
    assert_follows(optimizer, weight, twin, gradients(shape, 10, seed=2), left)


@pytest.mark.parametrize("basis_bits", [32, 16, 8, 4])
@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_the_first_moment_turns_with_the_basis_as_stored(basis_bits, proj_type):
    weight = nn.Parameter(torch.zeros(12, 20))
    optimizer = GaLoreAdamW(
        [{"params": [weight], "rank": 3, "proj_type": proj_type}], basis_bits=basis_bits, update_proj_gap=2
    )

    def basis():
        (matrix,) = optimizer.step_of(weight).matrices(optimizer.member(weight, optimizer.param_groups[0]))
        subspace = matrix.subspace()
        return (subspace.left if proj_type == "left" else subspace.right).clone()

    grads = [grad.float() for grad in gradients((12, 20), 3)]
    for grad in grads[:2]:
        weight.grad = grad
        optimizer.step()
    old, before = basis(), optimizer.state[weight]["exp_avg"].clone()
    weight.grad = grads[2]
    optimizer.step()
    new = basis()
    assert (new - old).norm() > 0.1
    if proj_type == "left":
        expected = 0.9 * (new.T @ old @ before) + 0.1 * (new.T @ grads[2])
    else:
        expected = 0.9 * (before @ old.T @ new) + 0.1 * (grads[2] @ new)
    # Float32 products of 20 terms.
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], expected, rtol=0, atol=1e-5)
