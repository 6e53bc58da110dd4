"""Subspaces of tensors: exact identities in double precision, real and complex."""

import math

import pytest
import torch
from gradient_tensors import random_tensor

from featherweight.linalg.tucker import TuckerSubspace, contract, contraction_order, squared_norm
from featherweight.linalg.tucker_fit import fit_tucker

SHAPES = [(7, 5), (6, 5, 4), (5, 1, 4, 3), (4, 3, 5, 2, 3), (3, 2, 4, 2, 3, 2)]


RANKS = [(3, 3), (3, 4, 2), (3, 1, 4, 2), (2, 3, 3, 1, 2), (2, 2, 2, 1, 2, 2)]


DTYPES = [torch.float64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "ranks"), list(zip(SHAPES, RANKS, strict=True)))
def test_projection_is_orthogonal_and_keeps_norms(shape, ranks, dtype):
    grad = random_tensor(shape, dtype)
    subspace = fit_tucker(grad, ranks).subspace
    core = subspace.project(grad)
    projected = subspace.project_back(core)
    # Mutation: a transpose in place of the conjugate transpose fails all three for complex numbers. 1e-12: rounding.
    torch.testing.assert_close(subspace.project_back(subspace.project(projected)), projected, rtol=1e-12, atol=1e-12)
    assert abs(torch.vdot((grad - projected).flatten(), projected.flatten())) < 1e-12 * squared_norm(grad)
    assert math.isclose(squared_norm(core), squared_norm(projected), rel_tol=1e-12)


def test_a_full_rank_has_no_factor_and_changes_no_bit():
    grad = random_tensor((5, 4, 3), torch.complex64)
    fit = fit_tucker(grad, (5, 4, 3))
    assert fit.subspace.factors == (None, None, None)
    assert torch.equal(fit.core, grad) and fit.error_sq == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_contraction_equals_einsum_in_any_order(dtype):
    tensor = random_tensor((4, 3, 5, 2), dtype)
    a, c, d = (random_tensor(s, dtype, 9) for s in ((3, 4), (6, 5), (2, 2)))
    expected = torch.einsum("ijkl,ai,ck,dl->ajcd", tensor, a, c, d)
    torch.testing.assert_close(contract(tensor, [a, None, c, d]), expected, rtol=1e-12, atol=1e-12)


def test_contraction_order_is_the_cheapest_of_all():
    import itertools

    inputs, outputs = (12, 30, 7, 9), (3, 4, 6, 9)

    def cost(order: tuple[int, ...]) -> int:
        sizes, total = list(inputs), 0
        for mode in order:
            total += math.prod(sizes) * outputs[mode]
            sizes[mode] = outputs[mode]
        return total

    best = min(cost(order) for order in itertools.permutations(range(4)))
    assert cost(contraction_order(inputs, outputs, (0, 1, 2, 3))) == best


def test_rotating_into_factors_of_the_same_span_loses_nothing():
    grad = random_tensor((6, 5, 4), torch.complex128)
    old = fit_tucker(grad, (3, 2, 2)).subspace
    turns = [torch.linalg.qr(random_tensor((r, r), torch.complex128, r)).Q for r in (3, 2, 2)]
    new = TuckerSubspace(old.shape, tuple(u @ q for u, q in zip(old.factors, turns, strict=True)))
    core = random_tensor((3, 2, 2), torch.complex128, 5)
    moved = new.transform(core, new.overlap(old))
    torch.testing.assert_close(new.project_back(moved), old.project_back(core), rtol=1e-12, atol=1e-12)
