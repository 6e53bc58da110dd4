import pytest
import torch

from featherweight.linalg import factors
from featherweight.linalg.factors import factorize, interpolate, product_spectrum, rebalance

SHAPES = [(7, 11), (11, 7), (13, 13), (1, 5), (5, 1), (1, 1), (64, 48)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_of_a_rank_is_what_is_left_of_the_spectrum(shape, generator):
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    full_left, full_right = factorize(matrix, len(values))
    torch.testing.assert_close(full_left @ full_right, matrix, rtol=0, atol=1e-12)
    for rank in range(1, len(values) + 1):
        left, right = factorize(matrix, rank)
        rest = matrix - left @ right
        assert float(rest.square().sum()) == pytest.approx(float(values[rank:].square().sum()), rel=1e-10, abs=1e-20)
        largest = float(values[rank]) if rank < len(values) else 0.0
        assert float(torch.linalg.matrix_norm(rest, 2)) == pytest.approx(largest, rel=1e-10, abs=1e-12)
        torch.testing.assert_close(left @ right, full_left[:, :rank] @ full_right[:rank], rtol=0, atol=1e-12)
        torch.testing.assert_close(left.mT @ left, torch.diag(values[:rank]), rtol=0, atol=1e-12)
        torch.testing.assert_close(right @ right.mT, torch.diag(values[:rank]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_factors_from_the_gram_matrix_are_as_good(shape, generator, monkeypatch):
    monkeypatch.setattr(factors, "GRAM_SIDE", 32)
    matrix = torch.randn(*shape, generator=generator)
    values = torch.linalg.svdvals(matrix.double())
    for rank in (1, 20, 40):
        left, right = factorize(matrix, rank)
        rest = (matrix.double() - left.double() @ right.double()).square().sum()
        # Products in float32: 1e-6 of each entry, so 1e-12 of the energy.
        energy = float(values.square().sum())
        assert float(rest) == pytest.approx(float(values[rank:].square().sum()), rel=1e-4, abs=1e-12 * energy)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_coefficients_give_the_matrix_with_small_coefficients(shape, generator):
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64)
    for rank in range(1, min(shape) + 1):
        left, right = factorize(matrix, rank)
        form = interpolate(left, right)
        rows = torch.cat([form.pivots_RN, form.coefficients_SR @ form.pivots_RN])[form.positions_M.long()]
        torch.testing.assert_close(rows, left @ right, rtol=0, atol=1e-11)
        assert form.pivots_RN.numel() + form.coefficients_SR.numel() == rank * (sum(shape) - rank)
        assert form.coefficients_SR.numel() == 0 or float(form.coefficients_SR.abs().max()) <= 2
        assert sorted(form.positions_M.tolist()) == list(range(shape[0]))


def test_rows_are_exchanged_where_elimination_leaves_large_coefficients():
    # Wilkinson's matrix: elimination with row exchanges alone grows like 2^(n-1). Here its inverse factor acts.
    size = 14
    lower = torch.eye(size, dtype=torch.float64) - torch.ones(size, size, dtype=torch.float64).tril(-1)
    left = torch.cat([lower, -torch.ones(6, size, dtype=torch.float64)])
    order = torch.linalg.lu_factor(left / left.norm(dim=0)).pivots[:size]
    assert order.tolist() == list(range(1, size + 1))  # no exchange happens
    plain = torch.linalg.solve_triangular(lower, left[size:], upper=False, left=False, unitriangular=True)
    assert float(plain.abs().max()) > 1000  # Mutation: without further exchanges these are what is stored

    form = interpolate(left, torch.eye(size, dtype=torch.float64))

    assert float(form.coefficients_SR.abs().max()) <= 2
    rows = torch.cat([form.pivots_RN, form.coefficients_SR @ form.pivots_RN])[form.positions_M.long()]
    torch.testing.assert_close(rows, left, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(20, 30, 5), (30, 20, 20), (4, 50, 3), (6, 5, 9)])
def test_the_spectrum_of_a_product_needs_no_product(rows, columns, rank, generator):
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    exact = torch.linalg.svdvals(left @ right)
    found = product_spectrum(left, right)
    torch.testing.assert_close(found, exact[: len(found)], rtol=1e-10, atol=1e-12)
    assert float(exact[len(found) :].sum()) < 1e-10


def test_rebalance_keeps_the_product(generator):
    left = torch.randn(20, 5, generator=generator, dtype=torch.float64) * 100
    right = torch.randn(5, 30, generator=generator, dtype=torch.float64)
    new_left, new_right = rebalance(left, right)
    values = torch.linalg.svdvals(left @ right)[:5]
    torch.testing.assert_close(new_left @ new_right, left @ right, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(new_left.mT @ new_left, torch.diag(values), rtol=0, atol=1e-10 * float(values[0]))
    torch.testing.assert_close(new_right @ new_right.mT, torch.diag(values), rtol=0, atol=1e-10 * float(values[0]))
