import pytest
import torch

from featherweight.errors import ShapeError
from featherweight.linalg.orthonormal import one_thread, orthonormalize, well_conditioned


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def deviation(basis):
    eye = torch.eye(basis.shape[-1], dtype=basis.dtype)
    return float((basis.mT @ basis - eye).abs().max())


def matrix_with_condition(rows, columns, condition, seed=0):
    """Columns mixed so that normalising them does not help."""
    left = torch.linalg.qr(randn(rows, columns, seed=seed, dtype=torch.float64)).Q
    right = torch.linalg.qr(randn(columns, columns, seed=seed + 1, dtype=torch.float64)).Q
    values = torch.logspace(0, -float(torch.log10(torch.tensor(condition))), columns, dtype=torch.float64)
    return ((left * values) @ right.mT).float()


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e3, 1e5, 1e7, 1e12])
def test_columns_are_orthonormal_at_every_condition_number(condition):
    # 1e-5 is the promise of the docstring; rounding alone gives about 5e-7. Mutation: trusting Cholesky QR when its
    # first pass left far from orthonormal columns fails from condition 1e5 on.
    assert deviation(orthonormalize(matrix_with_condition(96, 24, condition))) < 1e-5


def test_leading_columns_keep_their_span():
    matrix = randn(50, 8)
    basis = orthonormalize(matrix)
    for count in range(1, 9):
        leading, kept = matrix[:, :count], basis[:, :count]
        # float32 rounding of a 50-term sum, entries of order 1 and a condition number below 3: 1e-5 is ten times that.
        torch.testing.assert_close(kept @ (kept.mT @ leading), leading, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [lambda m: m, lambda m: m * torch.tensor([1.0, 0.0, 1.0, 0.0])], ids=["full", "zeros"])
def test_the_diagonal_of_the_triangle_is_not_negative(make):
    matrix = make(randn(30, 4))
    triangle = orthonormalize(matrix).mT @ matrix
    # Mutation: dropping the signs of Householder QR makes diagonal entries negative.
    assert bool((triangle.diagonal() >= -1e-6).all())


def test_a_batch_with_one_degenerate_matrix_equals_its_members():
    batch = torch.stack([randn(20, 5), torch.zeros(20, 5), randn(20, 1).expand(20, 5), randn(20, 5, seed=3)])
    together = orthonormalize(batch)
    assert deviation(together) < 1e-5
    for index in range(4):
        # Same algorithm on the same numbers, only other GEMM kernels: a few float32 roundings.
        torch.testing.assert_close(together[index], orthonormalize(batch[index]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30])
def test_scale_changes_nothing(scale):
    matrix = randn(40, 6)
    # Powers of ten are no powers of two: the scaled entries themselves differ by a rounding, and those of 1e-38 are
    # subnormal (absolute spacing 1.4e-45, so 1e-7 relative).
    torch.testing.assert_close(orthonormalize(matrix * scale), orthonormalize(matrix), rtol=0, atol=3e-6)


def test_input_is_not_modified():
    matrix = randn(10, 3)
    before = matrix.clone()
    orthonormalize(matrix)
    well_conditioned(matrix)
    assert torch.equal(matrix, before)


def test_more_columns_than_rows_are_refused_with_both_numbers():
    with pytest.raises(ShapeError, match=r"orthonormalize: matrix=\(3, 4\) has more columns than rows"):
        orthonormalize(torch.ones(3, 4))


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e9])
def test_well_conditioned_keeps_the_dominant_span_and_lowers_the_condition_number(condition):
    matrix = matrix_with_condition(80, 16, condition)
    result = well_conditioned(matrix)
    # Householder QR gives 1; one pass of Cholesky QR fails before it would return worse than about 10.
    assert float(torch.linalg.cond(result.double())) < 20
    dominant = torch.linalg.svd(matrix.double()).U[:, :4].float()
    # The 4 leading of 16 singular directions lie at least 1e-3 above the smallest float32 noise even at 1e9.
    projected = torch.linalg.qr(result).Q.mT @ dominant
    assert float(projected.square().sum()) > 4 - 1e-4


def test_one_thread_restores_the_number_of_threads_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="inside"), one_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
            raise RuntimeError("inside")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
