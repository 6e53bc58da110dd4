"""LDAdam against a slow twin."""

import pytest
import torch
from ldadam_runs import SHAPES, follow, stored_basis
from low_rank_twins import nearest_basis

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.refresh import smoothed_iteration


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
@pytest.mark.parametrize("policy", ["rotate", "keep"])
def test_steps_without_error_feedback_equal_the_twin(shape, proj_type, policy):
    optimizer, weight, twin, left = follow(shape, proj_type, policy, error_feedback=False)
    span, expected = stored_basis(optimizer, weight), twin.basis
    torch.testing.assert_close(span @ span.T, expected @ expected.T, rtol=0, atol=1e-10)
    assert int(optimizer.state[weight]["refresh_count"]) == 10  # a refresh at every step


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("shape", [(9, 13), (13, 9), (8, 8), (5, 5)])
def test_smoothed_iteration_equals_the_explicit_matrix(side, smoothing, shape):
    generator = torch.Generator().manual_seed(2)
    rank = 4
    length = shape[0] if side == "left" else shape[1]
    basis = torch.linalg.qr(torch.randn(length, rank, generator=generator, dtype=torch.float64))[0]
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    old = MatrixSubspace(**{side: basis})
    mean = torch.randn(old.core_shape(shape), generator=generator, dtype=torch.float64)
    back = basis @ mean if side == "left" else mean @ basis.T
    explicit = smoothing * back + (1 - smoothing) * grad
    product = explicit @ (explicit.T @ basis) if side == "left" else explicit.T @ (explicit @ basis)
    expected = nearest_basis(torch.linalg.qr(product)[0], basis)
    fresh = getattr(smoothed_iteration(grad, old, mean, smoothing), side)
    # The columns themselves agree: a span alone would hide a wrong order.
    torch.testing.assert_close(fresh, expected, rtol=0, atol=1e-9)
