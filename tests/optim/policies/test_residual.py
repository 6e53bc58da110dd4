"""The part of the gradient outside the subspace."""

import math

import pytest
import torch
from torch import nn

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import GaLoreAdamW
from featherweight.optim.policies.residual import FiraResidual


def orthonormal(rows, rank, seed):
    matrix = torch.randn(rows, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix)[0]


def test_fira_residual_follows_its_formula_column_by_column_and_limits_growth():
    basis = orthonormal(6, 2, 0)
    subspace = MatrixSubspace(left=basis)
    generator = torch.Generator().manual_seed(1)
    last_norm = torch.zeros((), dtype=torch.float32)
    expected_norm = 0.0
    for size in (1.0, 1.005, 5.0, 0.2):
        grad = size * torch.randn(6, 9, generator=generator, dtype=torch.float64)
        core = basis.T @ grad
        direction = torch.randn(2, 9, generator=generator, dtype=torch.float64)
        expected = torch.empty_like(grad)
        for j in range(9):
            phi = direction[:, j].norm() / (core[:, j].norm() + 1e-8)
            expected[:, j] = phi * (grad[:, j] - basis @ core[:, j])
        norm = expected.norm().item()
        if expected_norm and norm > 1.01 * expected_norm:
            expected *= 1.01 * expected_norm / norm
        expected_norm = expected.norm().item()
        extra = FiraResidual().extra(grad, core, direction, subspace, last_norm)
        torch.testing.assert_close(extra, expected, rtol=1e-6, atol=1e-9)  # the last norm is stored in float32
        assert math.isclose(last_norm.item(), expected_norm, rel_tol=1e-6)


@pytest.mark.parametrize("proj_type", ["left", "right", "full"])
def test_fira_moves_the_weight_outside_the_subspace_too(proj_type):
    moved = {}
    for residual in (None, "fira"):
        weight = nn.Parameter(torch.zeros(12, 10, dtype=torch.float64))
        group = {"params": [weight], "rank": 3, "proj_type": proj_type}
        optimizer = GaLoreAdamW([group], lr=0.1, residual=residual)
        weight.grad = torch.randn(12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        optimizer.step()
        moved[residual] = torch.linalg.matrix_rank(weight.detach(), rtol=1e-10).item()
    assert moved[None] == 3
    assert moved["fira"] == 10


def test_transposed_training_gives_the_transpose():
    results = []
    for flip in (False, True):
        start = torch.randn(12, 20, generator=torch.Generator().manual_seed(5))
        weight = nn.Parameter(start.T.contiguous() if flip else start)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 3}], lr=0.05, residual="fira", basis_method="svd")
        for seed in range(6):
            grad = torch.randn(12, 20, generator=torch.Generator().manual_seed(seed))
            weight.grad = grad.T.contiguous() if flip else grad
            optimizer.step()
        results.append(weight.detach().T if flip else weight.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("basis_bits", [32, 16, 8])
def test_fira_is_not_held_back_by_an_expert_that_saw_one_token(basis_bits):
    # A gradient of rank 1 lies in the subspace; the rounding left of it must not limit the residuals that follow.
    weight = nn.Parameter(torch.zeros(2, 40, 60))
    group = {"params": [weight], "rank": 4, "basis_bits": basis_bits}
    optimizer = GaLoreAdamW([group], residual="fira", update_proj_gap=1000)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        weight.grad = torch.randn(2, 40, 60, generator=generator)
        if seed == 0:
            weight.grad[1] = torch.randn(40, 1, generator=generator) @ torch.randn(1, 60, generator=generator)
        optimizer.step()
    often, once = optimizer.state[weight]["residual_norm"].tolist()
    assert once > 0.5 * often  # with the limit of rounding it stays below 0.01 of it


@pytest.mark.parametrize("zero", [False, True])
def test_fira_keeps_its_limit_over_a_zero_gradient(zero):
    subspace = MatrixSubspace(left=orthonormal(6, 2, 0))
    last_norm = torch.tensor(1.0)
    grads = [torch.zeros(6, 9, dtype=torch.float64)] * zero + [torch.ones(6, 9, dtype=torch.float64)]
    for grad in grads:
        core = subspace.project(grad)
        FiraResidual().extra(grad, core, 100 * core + 1, subspace, last_norm)
    assert math.isclose(last_norm.item(), 1.01, rel_tol=1e-6)


def test_fira_leaves_an_unused_expert_alone():
    weight = nn.Parameter(torch.ones(2, 40, 60))
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 4}], residual="fira", update_proj_gap=3)
    for seed in range(5):
        weight.grad = torch.randn(2, 40, 60, generator=torch.Generator().manual_seed(seed))
        weight.grad[1] = 0
        optimizer.step()
    assert torch.equal(weight[1], torch.ones(40, 60))
    assert optimizer.state[weight]["residual_norm"][1] == 0
