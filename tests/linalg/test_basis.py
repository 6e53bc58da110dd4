import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import ConfigError, NumericsError, ShapeError
from featherweight.linalg.basis import BASIS_METHODS, fit_left_basis, fix_signs
from featherweight.linalg.random import keyed_generator, random_orthonormal

WITHOUT_OLD = [method for method in BASIS_METHODS if method != "subspace_iteration"]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fit(matrix, rank, method="auto", *, seed=0, **options):
    if method == "subspace_iteration" and "old" not in options:
        rows, batch = matrix.shape[-2], tuple(matrix.shape[:-2])
        options["old"] = random_orthonormal(rows, rank, batch=batch, generator=keyed_generator(99))
    return fit_left_basis(matrix, rank, method, generator=keyed_generator(seed), **options)


def deviation(basis):
    return float((basis.mT @ basis - torch.eye(basis.shape[-1], dtype=basis.dtype)).abs().max())


def energy(basis, matrix):
    return float((basis.mT @ matrix).square().sum())


# ---- quality: 512 x 1376, singular values i**-0.8, rank 128 ----


@pytest.fixture(scope="module")
def decaying():
    rows, columns = 512, 1376
    left = random_orthonormal(rows, rows, generator=keyed_generator(1))
    right = random_orthonormal(columns, rows, generator=keyed_generator(2))
    values = torch.arange(1, rows + 1) ** -0.8
    return (left * values) @ right.mT, left[:, :128].contiguous(), float(values[:128].square().sum())


# Thresholds: what the method is for. Measured ratios are 0.973, 0.9975, 1 - 1e-7, 1 - 1e-7.
@pytest.mark.parametrize(
    ("method", "options", "share"),
    [
        ("randomized", {"power_iterations": 0}, 0.97),
        ("randomized", {"power_iterations": 1}, 0.995),
        ("randomized", {}, 0.995),
        ("auto", {}, 0.995),
        ("gram", {}, 1 - 1e-5),
        ("svd", {}, 1 - 1e-5),
    ],
)
def test_share_of_the_best_energy(decaying, method, options, share):
    matrix, _, best = decaying
    basis = fit(matrix, 128, method, **options)
    assert share <= energy(basis, matrix) / best <= 1 + 1e-5  # sums of squares of 1e5 numbers in float32
    assert deviation(basis) < 1e-5


def test_more_power_iterations_capture_more(decaying):
    matrix, _, _ = decaying
    shares = [energy(fit(matrix, 128, "randomized", power_iterations=q), matrix) for q in (0, 1, 2)]
    assert shares == sorted(shares)
    assert len(set(shares)) == 3


def test_two_iterations_from_a_random_start_capture_0_998(decaying):
    matrix, _, best = decaying
    basis = random_orthonormal(512, 128, generator=keyed_generator(5))
    for _ in range(2):
        basis = fit(matrix, 128, "subspace_iteration", old=basis)
        assert deviation(basis) < 1e-5
    assert energy(basis, matrix) / best >= 0.998


def test_warm_iterations_from_a_nearby_basis_capture_0_998_and_0_9995(decaying):
    matrix, true_basis, best = decaying
    basis = true_basis + 0.05 * randn(512, 128, seed=3)
    # The noise is large: 128 columns of norm 1 get noise of norm 0.05 * sqrt(512) = 1.13.
    for share in (0.998, 0.9995):
        basis = fit(matrix, 128, "auto", old=basis)
        assert energy(basis, matrix) / best >= share
        assert deviation(basis) < 1e-5


def test_subspace_iteration_continues_the_columns_of_the_old_basis(decaying):
    matrix, true_basis, _ = decaying
    new = fit(matrix, 128, "subspace_iteration", old=true_basis)
    # Singular vectors are fixed points, each by itself; float32 errors of 1e-7 are amplified by a singular value over
    # the gap to its neighbour (up to 160, squared values 80): 1e-4. Signs are canonical.
    torch.testing.assert_close(new, fix_signs(true_basis), rtol=0, atol=1e-4)


def test_exact_methods_find_the_singular_vectors_themselves(decaying):
    matrix, true_basis, _ = decaying
    for method in ("svd", "gram"):
        basis = fit(matrix, 16, method)
        # Leading gaps are at least 0.05 relative; the Gram matrix squares: float32 1e-7 / 0.1 with some room.
        torch.testing.assert_close(basis, fix_signs(true_basis[:, :16]), rtol=0, atol=1e-4)


# ---- any finite input gives orthonormal columns ----

SHAPES = [(1, 1, 1), (1, 7, 1), (7, 1, 1), (7, 1, 3), (5, 123, 5), (123, 5, 5), (123, 5, 20), (31, 31, 31), (16, 40, 9)]


@pytest.mark.parametrize("method", BASIS_METHODS)
@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_columns_are_orthonormal_for_every_shape(method, rows, columns, rank):
    basis = fit(randn(rows, columns), rank, method)
    assert basis.shape == (rows, rank)
    assert deviation(basis) < 1e-5


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    method=st.sampled_from(BASIS_METHODS),
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    inner=st.integers(0, 4),
    exponent=st.integers(-37, 36),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_columns_are_orthonormal_for_any_rank_deficiency_and_scale(method, rows, columns, inner, exponent, seed, data):
    rank = data.draw(st.integers(1, rows))
    matrix = (randn(rows, inner, seed=seed) @ randn(inner, columns, seed=seed + 1)) * 10.0**exponent
    basis = fit(matrix, rank, method)
    assert deviation(basis) < 1e-5
    if method != "random" and inner <= rank and float(matrix.abs().max()) > 1e-30:
        # All of a matrix whose rank is no larger than R lies in the span (float32 rounding, times conditions near 1e2).
        unit = matrix / matrix.abs().max()
        assert float((unit - basis @ (basis.mT @ unit)).abs().max()) < 1e-3


@pytest.mark.parametrize("method", BASIS_METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_changes_only_rounding(method, scale):
    matrix = randn(20, 3) @ torch.diag(torch.tensor([4.0, 2.0, 1.0])) @ randn(3, 30, seed=1)
    span = fit(matrix, 3, method)
    scaled = fit(matrix * scale, 3, method)
    # Spans are equal: the projections differ by float32 rounding times a condition number of order 10.
    torch.testing.assert_close(scaled @ scaled.mT, span @ span.mT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", WITHOUT_OLD)
def test_a_zero_matrix_gives_random_columns_from_the_generator(method):
    zero = torch.zeros(12, 20)
    first = fit(zero, 4, method)
    assert deviation(first) < 1e-5
    assert torch.equal(first, fit(zero, 4, method))
    assert not torch.allclose(first, fit(zero, 4, method, seed=1), atol=0.1)


def test_a_zero_matrix_keeps_the_old_basis():
    old = fix_signs(random_orthonormal(12, 4, generator=keyed_generator(3)))
    # Orthonormal columns pass through orthonormalisation with a few roundings.
    torch.testing.assert_close(fit(torch.zeros(12, 20), 4, "auto", old=old), old, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", BASIS_METHODS)
def test_a_batch_has_its_own_basis_for_each_matrix(method):
    batch = randn(2, 3, 10, 14)
    batch[1, 2] = 0
    old = random_orthonormal(10, 4, batch=(2, 3), generator=keyed_generator(4))
    basis = fit(batch, 4, method, old=old)
    assert basis.shape == (2, 3, 10, 4)
    assert deviation(basis) < 1e-5
    if method in ("svd", "gram", "subspace_iteration", "auto"):
        for index in ((0, 0), (1, 1), (1, 2)):
            single = fit(batch[index], 4, method, old=old[index])
            # Same arithmetic with other kernels; singular values of Gaussian matrices have gaps of a few percent.
            torch.testing.assert_close(basis[index], single, rtol=0, atol=1e-4)


def test_a_batch_mixes_zero_and_ordinary_matrices():
    batch = torch.stack([torch.zeros(8, 9), randn(8, 9)])
    basis = fit(batch, 3, "svd")
    torch.testing.assert_close(basis[1], fit(batch[1], 3, "svd"), rtol=0, atol=1e-5)
    assert deviation(basis[0]) < 1e-5


def test_an_empty_batch_gives_an_empty_basis():
    assert fit(torch.zeros(0, 6, 7), 2, "svd").shape == (0, 6, 2)


@pytest.mark.parametrize("method", BASIS_METHODS)
def test_the_right_side_is_the_left_side_of_the_transposed_view(method):
    matrix = randn(18, 11)
    old = random_orthonormal(11, 3, generator=keyed_generator(4))
    # Transposition changes only which GEMM kernel runs: float32 rounding over gaps of a few percent.
    torch.testing.assert_close(
        fit(matrix.mT, 3, method, old=old), fit(matrix.mT.contiguous(), 3, method, old=old), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("method", BASIS_METHODS)
def test_half_precision_is_computed_in_float32_and_double_in_double(method):
    matrix = randn(16, 24)
    old = random_orthonormal(16, 4, generator=keyed_generator(4))
    basis = fit(matrix.bfloat16(), 4, method, old=old)
    assert basis.dtype == torch.float32
    assert torch.equal(basis, fit(matrix.bfloat16().float(), 4, method, old=old))
    double = fit(matrix.double(), 4, method, old=old)
    assert double.dtype == torch.float64
    # Double precision rounding of 16-term sums; float32 anywhere inside would leave 1e-7.
    assert deviation(double) < 1e-13


@pytest.mark.parametrize("method", BASIS_METHODS)
def test_signs_are_fixed_and_results_repeat_bitwise(method):
    matrix = randn(20, 30)
    basis = fit(matrix, 5, method)
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    assert bool((largest > 0).all())
    assert torch.equal(basis, fit(matrix, 5, method))
    if method != "random":
        # G and -G have the same left singular vectors; float32 rounding does not depend on the sign.
        assert torch.equal(fit(-matrix, 5, "svd"), fit(matrix, 5, "svd"))


def test_ties_of_magnitude_take_the_sign_of_the_first_entry():
    basis = torch.tensor([[-0.5, 0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, -0.5]])
    assert torch.equal(fix_signs(basis), torch.tensor([[0.5, 0.5], [-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5]]))


def test_a_basis_needs_no_gradient_and_leaves_the_matrix_alone():
    matrix = randn(9, 12).requires_grad_()
    before = matrix.detach().clone()
    assert not fit(matrix, 3).requires_grad
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("method", ["svd", "gram", "subspace_iteration"])
def test_methods_without_randomness_leave_the_generator_untouched(method):
    generator = keyed_generator(7)
    before = generator.get_state()
    old = random_orthonormal(9, 3, generator=keyed_generator(1))
    fit_left_basis(randn(9, 12), 3, method, old=old, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for method in BASIS_METHODS:
            fit(randn(20, 30), 5, method)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---- bad input ----


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", BASIS_METHODS)
def test_non_finite_input_is_refused(method, value):
    matrix = randn(2, 6, 8)
    matrix[1, 2, 3] = value
    with pytest.raises(NumericsError, match=r"matrix=\(2, 6, 8\) holds NaN or infinity in 1 of 2"):
        fit(matrix, 2, method)


@pytest.mark.parametrize("rank", [0, -3, 7])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(ConfigError, match=rf"rank={rank} does not fit matrix=\(6, 8\); expected 1 <= rank <= 6"):
        fit(randn(6, 8), rank)


def test_an_unknown_method_names_the_nearest_one():
    with pytest.raises(ConfigError, match=r"method='randomised' is unknown.*Did you mean 'randomized'\?"):
        fit(randn(6, 8), 2, "randomised")


def test_subspace_iteration_without_an_old_basis_is_refused():
    with pytest.raises(ConfigError, match="has old=None"):
        fit_left_basis(randn(6, 8), 2, "subspace_iteration", generator=keyed_generator(0))


def test_an_old_basis_of_another_shape_is_refused_naming_both():
    with pytest.raises(ShapeError, match=r"old=\(6, 3\) does not fit matrix=\(6, 8\) at rank=2; expected \(6, 2\)"):
        fit(randn(6, 8), 2, "auto", old=randn(6, 3))


@pytest.mark.parametrize("shape", [(5,), (0, 4), (4, 0)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ShapeError, match="is no matrix"):
        fit_left_basis(torch.ones(shape), 1, "svd", generator=keyed_generator(0))
