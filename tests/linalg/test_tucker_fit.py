"""Fitting bases to a gradient tensor."""

import math

import numpy as np
import pytest
import torch
from gradient_tensors import random_tensor
from torch import Tensor

from featherweight.errors import ConfigError, NumericsError, ShapeError
from featherweight.linalg.tucker import SliceSubspace, TuckerSubspace, squared_norm
from featherweight.linalg.tucker_fit import fit_selection, fit_slices, fit_tucker, mode_gram

SHAPES = [(7, 5), (6, 5, 4), (5, 1, 4, 3), (4, 3, 5, 2, 3), (3, 2, 4, 2, 3, 2)]


RANKS = [(3, 3), (3, 4, 2), (3, 1, 4, 2), (2, 3, 3, 1, 2), (2, 2, 2, 1, 2, 2)]


DTYPES = [torch.float64, torch.complex128]


def unfolding(tensor: Tensor, mode: int) -> Tensor:
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "ranks"), list(zip(SHAPES, RANKS, strict=True)))
def test_error_of_sequential_truncation_is_the_sum_of_dropped_eigenvalues(shape, ranks, dtype):
    grad = random_tensor(shape, dtype)
    fit = fit_tucker(grad, ranks, "st_hosvd")
    lost = squared_norm(grad - fit.subspace.project_back(fit.core))
    assert math.isclose(lost, fit.error_sq, rel_tol=1e-12, abs_tol=1e-12 * squared_norm(grad))
    tails = []
    for mode, rank in enumerate(ranks):
        values = torch.linalg.svdvals(unfolding(grad, mode))
        tails.append(float(values[rank:].square().sum()))
    assert max(tails) - 1e-12 <= fit.error_sq <= sum(tails) + 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_of_orthogonal_iteration_never_rises(dtype):
    grad = random_tensor((8, 7, 6, 5), dtype)
    ranks = (3, 3, 2, 2)
    start = TuckerSubspace(
        grad.shape,
        tuple(torch.linalg.qr(random_tensor((n, r), dtype, n)).Q for n, r in zip(grad.shape, ranks, strict=True)),
    )
    errors, subspace = [math.inf], start
    for _ in range(6):
        fit = fit_tucker(grad, ranks, "hooi", old=subspace)
        subspace = fit.subspace
        errors.append(fit.error_sq)
    assert all(after <= before * (1 + 1e-12) for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] <= fit_tucker(grad, ranks).error_sq * (1 + 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_modes_at_equal_ranks_are_the_truncated_svd(dtype):
    grad = random_tensor((9, 6), dtype)
    fit = fit_tucker(grad, (3, 3))
    u, s, vh = torch.linalg.svd(grad, full_matrices=False)
    best = (u[:, :3] * s[:3]) @ vh[:3]
    # The mode that comes second is exact only because the first one already spans the leading left vectors.
    torch.testing.assert_close(fit.subspace.project_back(fit.core), best, rtol=1e-10, atol=1e-10)


def test_one_sided_matrix_attains_the_known_eckart_young_error():
    generator = np.random.default_rng(0)
    matrix = torch.from_numpy(generator.standard_normal((60, 40)) + 1j * generator.standard_normal((60, 40)))
    for rank, expected in ((20, 0.400561), (40, 0.0)):
        fit = fit_tucker(matrix, (60, rank))
        error = torch.linalg.vector_norm(matrix - fit.subspace.project_back(fit.core)) / torch.linalg.vector_norm(
            matrix
        )
        # 1e-6: the digits of the known value. Without conjugation the error is 1.22 and 1.42.
        assert abs(float(error) - expected) < 1e-6


@pytest.mark.parametrize("method", ["st_hosvd", "hooi", "subspace", "randomized"])
def test_methods_keep_columns_orthonormal_when_unfoldings_are_rank_deficient(method):
    outer = torch.einsum("i,j,k->ijk", *(random_tensor((n,), torch.complex128, n) for n in (6, 5, 4)))
    fit = fit_tucker(outer, (3, 3, 3), method)
    for factor in fit.subspace.factors:
        torch.testing.assert_close(factor.mH @ factor, torch.eye(3, dtype=torch.complex128), rtol=0, atol=1e-10)
    assert squared_norm(outer - fit.subspace.project_back(fit.core)) < 1e-20 * squared_norm(outer)


def test_randomized_is_close_to_exact_and_repeats():
    grad = random_tensor((40, 30, 20), torch.float64)
    exact = fit_tucker(grad, (10, 8, 6), "st_hosvd").error_sq
    one, two = (
        fit_tucker(grad, (10, 8, 6), "randomized", generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    # Measured 1.0005 on this tensor.
    assert exact <= one.error_sq * (1 + 1e-9) and one.error_sq < 1.01 * exact
    assert torch.equal(one.core, two.core)


def test_phases_are_fixed():
    grad = random_tensor((6, 5, 4), torch.complex128)
    turned = grad * torch.exp(torch.tensor(0.7j, dtype=torch.complex128))
    fits = [fit_tucker(one, (3, 3, 2)).subspace.factors for one in (grad, turned)]
    for one, two in zip(*fits, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_gram_in_small_blocks_is_the_gram(dtype):
    tensor = random_tensor((4, 7, 3, 5), dtype).permute(2, 0, 3, 1)  # not contiguous
    for mode in range(4):
        flat = unfolding(tensor, mode).to(torch.complex128 if dtype.is_complex else torch.float64)
        for workspace in (1, 200, 1 << 28):
            # 1e-5: products of blocks run in the dtype of the tensor.
            torch.testing.assert_close(mode_gram(tensor, mode, workspace), flat @ flat.mH, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_lose_nothing_when_the_rank_reaches_that_of_each_slice(dtype):
    # A gradient of a spectral layer: sum over b of conj(x_b[m]) d_b[m]^T, so each slice has rank 2 at batch 2.
    x, d = random_tensor((2, 6, 4, 3), dtype), random_tensor((2, 5, 4, 3), dtype, 1)
    grad = torch.einsum("bixy,boxy->ioxy", x.conj(), d)
    subspace = fit_slices(grad, 2)
    assert subspace.core_shape == (12, 2, 5)
    torch.testing.assert_close(subspace.project_back(subspace.project(grad)), grad, rtol=1e-10, atol=1e-10)
    assert fit_slices(grad, 1).energy(grad) < 1
    again = SliceSubspace(subspace.shape, subspace.basis)
    torch.testing.assert_close(
        subspace.overlap(again)[0], torch.eye(2, dtype=dtype).expand(12, 2, 2), atol=1e-12, rtol=0
    )


def test_selection_keeps_the_strongest_indices_and_zeroes_the_rest():
    grad = random_tensor((5, 4, 6), torch.complex128)
    grad[:, :, 3] *= 100
    subspace = fit_selection(grad, (5, 4, 2), modes=(2,))
    assert subspace.factors[:2] == (None, None) and 3 in subspace.factors[2]
    back = subspace.project_back(subspace.project(grad))
    chosen = subspace.factors[2]
    assert torch.equal(back[:, :, chosen], grad[:, :, chosen])
    assert int((back != 0).any(dim=0).any(dim=0).sum()) == 2
    other = TuckerSubspace(subspace.shape, (None, None, torch.tensor([2, 3])))
    moved = other.transform(subspace.project(grad), [None, None, other.overlap(subspace)[2].to(grad.dtype)])
    assert torch.equal(other.project_back(moved)[:, :, 3], grad[:, :, 3])


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_half_precision_inputs_are_computed_in_single():
    grad = random_tensor((4, 3, 2), torch.complex64)
    subspace = fit_tucker(grad.to(torch.complex32), (2, 2, 2)).subspace
    assert subspace.project(grad.to(torch.complex32)).dtype == torch.complex64
    assert fit_tucker(grad.real.bfloat16(), (2, 2, 2)).core.dtype == torch.float32


def test_zero_and_broken_gradients():
    fit = fit_tucker(torch.zeros(4, 3, 2), (2, 3, 1))
    assert torch.equal(fit.subspace.factors[0], torch.eye(4)[:, :2]) and fit.subspace.factors[1] is None
    with pytest.raises(NumericsError, match="NaN or infinity"):
        fit_tucker(torch.full((3, 3, 3), math.nan), (1, 1, 1))
    with pytest.raises(ShapeError, match="do not fit"):
        fit_tucker(torch.ones(3, 3), (4, 1))
    with pytest.raises(ConfigError, match="st_hosvd"):
        fit_tucker(torch.ones(3, 3), (1, 1), "st_hosvdd")
    with pytest.raises(ShapeError, match="does not fit"):
        fit_tucker(torch.ones(3, 3), (1, 1)).subspace.project(torch.ones(3, 4))


@pytest.mark.parametrize("method", ["st_hosvd", "hooi"])
def test_columns_beyond_the_numerical_rank_do_not_follow_rounding(method):
    # As gradients of a small batch are: of rank 1 in each unfolding, and three columns are asked for.
    outer = torch.einsum("i,j,k->ijk", *(random_tensor((n,), torch.complex128, n) for n in (6, 5, 4)))
    noise = 1e-15 * random_tensor((6, 5, 4), torch.complex128, 1)
    one, two = (fit_tucker(grad, (3, 3, 3), method).subspace for grad in (outer, outer * (1 + noise)))
    for u, v in zip(one.factors, two.factors, strict=True):
        # Eigenvectors of rounding would differ by 1, and training by one step of Adam's in each of their coordinates.
        assert float((u - v).abs().max()) < 1e-10
