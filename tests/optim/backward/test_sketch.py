"""Bases and norms of matrices of which only products with thin matrices are known."""

import pytest
import torch

from featherweight.linalg.orthonormal import orthonormalize
from featherweight.optim import GaLoreAdamW
from featherweight.optim.backward.sketch import NORM_COLUMNS, basis_of_sketch, begin_sketch, norm_matrix


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(rows, columns, rank):
    return random(rows, rank, seed=1) @ random(rank, columns, seed=2)


def test_an_oversampled_sketch_of_a_matrix_of_low_rank_gives_its_row_space():
    grad = low_rank(30, 20, 3)
    omega, start = begin_sketch(orthonormalize(random(20, 3)), None, 30, smoothing=0.0, key=(0,))
    assert omega.shape == (30, 11) and not start.any()
    basis = basis_of_sketch(start + grad.mT @ omega, 3, (1,))
    torch.testing.assert_close(grad @ basis @ basis.mT, grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.4])
def test_what_is_remembered_enters_a_warm_sketch_with_its_share(smoothing):
    # qr(B^T qr(mean)) with B = smoothing * mean Q^T + (1 - smoothing) * G, up to a factor of 1 - smoothing.
    grad, mean, old = random(30, 20), random(30, 3, seed=3), orthonormalize(random(20, 3, seed=4))
    omega, start = begin_sketch(old, mean, 30, smoothing=smoothing, key=(0,))
    blended = smoothing * mean @ old.mT + (1 - smoothing) * grad
    expected = blended.mT @ orthonormalize(mean)
    torch.testing.assert_close((start + grad.mT @ omega) * (1 - smoothing), expected, rtol=1e-10, atol=1e-10)


def test_the_norm_is_estimated_without_bias():
    weight = torch.nn.Parameter(torch.zeros(12, 40, dtype=torch.float64))
    (layout,) = GaLoreAdamW([weight], rank=4).layouts.values()
    grad = random(12, 40)
    found = [(grad @ norm_matrix(layout, (seed,), grad.device)).square().sum() for seed in range(400)]
    # One estimate of a matrix with 12 equal singular values has a spread of sqrt(2 / (8 * 12)) = 0.14.
    assert abs(float(torch.stack(found).mean() / grad.square().sum()) - 1) < 4 * 0.15 / 20
    assert norm_matrix(layout, (0,), grad.device).shape == (40, NORM_COLUMNS)
