"""Subspaces of tensors: exact identities in double precision, real and complex."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from featherweight.errors import ConfigError, NumericsError, ShapeError
from featherweight.linalg.tucker import SliceSubspace, TuckerSubspace, contract, contraction_order, squared_norm
from featherweight.linalg.tucker_fit import fit_selection, fit_slices, fit_tucker, mode_gram
from featherweight.linalg.tucker_ranks import greedy_ranks, tucker_ranks

SHAPES = [(7, 5), (6, 5, 4), (5, 1, 4, 3), (4, 3, 5, 2, 3), (3, 2, 4, 2, 3, 2)]
RANKS = [(3, 3), (3, 4, 2), (3, 1, 4, 2), (2, 3, 3, 1, 2), (2, 2, 2, 1, 2, 2)]
DTYPES = [torch.float64, torch.complex128]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A tensor whose unfoldings have decaying spectra, so that the order of eigenvalues is well defined."""
    tensor = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    for mode, size in enumerate(shape):
        decay = torch.arange(1, size + 1, dtype=torch.float64) ** -0.7
        tensor = tensor * decay.view(-1, *[1] * (len(shape) - 1 - mode))
    return tensor


def unfolding(tensor: Tensor, mode: int) -> Tensor:
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


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


def test_a_full_rank_has_no_factor_and_changes_no_bit():
    grad = random_tensor((5, 4, 3), torch.complex64)
    fit = fit_tucker(grad, (5, 4, 3))
    assert fit.subspace.factors == (None, None, None)
    assert torch.equal(fit.core, grad) and fit.error_sq == 0


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


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ("tensorgrad", [(17, 17, 6, 4), (46, 46, 46, 24), (91, 91, 91, 46)]),
        ("tensorly", [(16, 16, 5, 3), (45, 45, 45, 23)]),
    ],
)
def test_ranks_of_the_other_codes(counts, expected):
    shapes = [(24, 24, 8, 5), (64, 64, 64, 33), (128, 128, 128, 65)]
    assert [tucker_ranks(shape, 0.25, counts) for shape in shapes[: len(expected)]] == expected


@pytest.mark.parametrize("shape", [(24, 24, 8, 5), (64, 64, 64, 33), (1, 7, 5, 3), (32, 6, 8)])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.7])
def test_core_share_is_met_to_one_index_of_one_mode(shape, share):
    ranks, numel = tucker_ranks(shape, share), math.prod(shape)
    assert all(1 <= r <= n for r, n in zip(ranks, shape, strict=True))
    one_more = [math.prod(ranks) // r * (r + 1) for r, n in zip(ranks, shape, strict=True) if r < n]
    one_less = [math.prod(ranks) // r * (r - 1) for r in ranks if r > 1]
    # Not more than one index too few, not more than one too many.
    assert max(one_more, default=numel) >= share * numel
    assert min(one_less, default=0) <= share * numel


def test_other_forms_of_a_rank():
    assert tucker_ranks((8, 6, 4), 3) == (3, 3, 3)
    assert tucker_ranks((8, 6, 4), (5, 9, 2)) == (5, 6, 2)
    assert tucker_ranks((8, 6, 4), (0.5, 0.5, 1.0)) == (4, 3, 4)
    assert tucker_ranks((8, 6, 4), (8, 1, 1)) == (1, 1, 1)  # no core mode has more rank than the product of the others
    assert tucker_ranks((8, 6, 4), 0.25, modes=(0, 1))[2] == 4
    assert tucker_ranks((8, 6, 4), 1.0) == (8, 6, 4)
    for wrong in (0, -1, 0.0, 1.5, True, (1, 2), (0.5, 0, 1)):
        with pytest.raises(ConfigError, match="not allowed"):
            tucker_ranks((8, 6, 4), wrong)


def test_greedy_ranks_follow_the_spectrum():
    grad = torch.einsum(
        "ia,jb,kc,abc->ijk",
        *(torch.linalg.qr(random_tensor((n, n), torch.float64, n)).Q for n in (8, 8, 8)),
        random_tensor((8, 8, 8), torch.float64) * torch.tensor([1.0] * 2 + [1e-3] * 6, dtype=torch.float64),
    )
    ranks = greedy_ranks(grad, 128)
    assert ranks[2] == 2 and math.prod(ranks) <= 128
    assert fit_tucker(grad, ranks).error_sq < 0.5 * fit_tucker(grad, tucker_ranks(grad.shape, 0.25)).error_sq


def test_greedy_ranks_leave_other_modes_alone():
    grad = random_tensor((6, 5, 4), torch.complex128)
    ranks = greedy_ranks(grad, 4 * 9, modes=(0, 1))
    assert ranks[2] == 4 and ranks[0] * ranks[1] <= 9 < (ranks[0] + 1) * (ranks[1] + 1)
    with pytest.raises(ConfigError, match="expected at least 4 entries"):
        greedy_ranks(grad, 3, modes=(0, 1))


@pytest.mark.parametrize("method", ["st_hosvd", "hooi"])
def test_columns_beyond_the_numerical_rank_do_not_follow_rounding(method):
    # As gradients of a small batch are: of rank 1 in each unfolding, and three columns are asked for.
    outer = torch.einsum("i,j,k->ijk", *(random_tensor((n,), torch.complex128, n) for n in (6, 5, 4)))
    noise = 1e-15 * random_tensor((6, 5, 4), torch.complex128, 1)
    one, two = (fit_tucker(grad, (3, 3, 3), method).subspace for grad in (outer, outer * (1 + noise)))
    for u, v in zip(one.factors, two.factors, strict=True):
        # Eigenvectors of rounding would differ by 1, and training by one step of Adam's in each of their coordinates.
        assert float((u - v).abs().max()) < 1e-10
