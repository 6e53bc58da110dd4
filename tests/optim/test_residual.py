"""The part of the gradient outside the subspace."""

import math

import pytest
import torch
from torch import nn

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import GaLoreAdamW
from featherweight.optim.residual import FiraResidual


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
