import pytest
import torch

from featherweight.errors import ShapeError
from featherweight.linalg.outer_product import OuterProduct


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, columns, generator=generator, dtype=torch.float64) for columns in (5, 3)]


def test_products_are_those_of_the_matrix(factors):
    gradient, dense = OuterProduct(*factors), factors[0].mT @ factors[1]
    left, right = torch.eye(5, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    assert gradient.shape == dense.shape and torch.equal(gradient.dense(), dense)
    torch.testing.assert_close(gradient @ right, dense @ right)
    torch.testing.assert_close(gradient.mT @ left, dense.mT @ left)
    torch.testing.assert_close(gradient.project(left, right), left.mT @ dense @ right)
    torch.testing.assert_close(gradient.rows(1, 4).dense(), dense[1:4])


def test_any_looks_at_tokens_where_both_factors_are():
    left, right = torch.ones(4, 2), torch.ones(4, 3)
    left[:2], right[2:] = 0, 0
    assert not OuterProduct(left, right).any()
    assert not OuterProduct(left[:0], right[:0]).any()
    right[3, 1] = 1e-30
    assert OuterProduct(left, right).any()


def test_what_is_not_finite_is_found(factors):
    left, right = factors
    assert OuterProduct(left, right).is_finite() and OuterProduct(left[:0], right[:0]).is_finite()
    for factor in factors:
        for value in (float("nan"), float("inf"), -float("inf")):
            kept = factor[3, 1].clone()
            factor[3, 1] = value
            assert not OuterProduct(left, right).is_finite()
            factor[3, 1] = kept


def test_factors_must_fit():
    with pytest.raises(ShapeError, match="do not fit"):
        OuterProduct(torch.ones(4, 2), torch.ones(3, 2))
