"""Errors of fields."""

import math

import pytest
import torch

from featherweight.errors import ShapeError
from featherweight.pde.metrics import derivative, error_by_shell, largest_error, relative_h1, relative_l2


@pytest.mark.parametrize("periodic", [True, False])
def test_derivatives_are_those_of_known_functions(periodic):
    size = 65
    x = torch.arange(size, dtype=torch.float64) / (size if periodic else size - 1)
    field = torch.sin(2 * math.pi * x) if periodic else x**2
    exact = 2 * math.pi * torch.cos(2 * math.pi * x) if periodic else 2 * x
    found = derivative(field.expand(3, 2, size), 2, periodic=periodic)
    # Central differences lose (2 pi h)^2 / 6 = 1.6e-3 of a sine; they and the third-order ends are exact on a parabola.
    torch.testing.assert_close(found, exact.expand(3, 2, size), rtol=0, atol=2e-2 if periodic else 1e-12)
    turned = derivative(field.view(1, 1, size, 1).expand(1, 1, size, size), 2, periodic=periodic)
    torch.testing.assert_close(turned[0, 0, :, 3], found[0, 0], rtol=0, atol=1e-12)


def test_h1_adds_derivatives_to_both_norms():
    y = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = y + 0.1 * y.roll(1, 2)
    for periodic in (True, False):
        parts = [(e, [derivative(e, k, periodic=periodic) for k in (2, 3)]) for e in (p - y, y)]
        sums = [one.flatten(1).square().sum(1) + sum(d.flatten(1).square().sum(1) for d in ds) for one, ds in parts]
        torch.testing.assert_close(relative_h1(p, y, periodic=periodic), (sums[0] / sums[1]).sqrt())


def test_errors_are_relative_and_by_sample():
    y = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    factor = torch.tensor([1.1, 0.8, 1.0]).view(3, 1, 1, 1)
    for found in (relative_l2(y * factor, y), relative_h1(y * factor, y, periodic=True)):
        torch.testing.assert_close(found, torch.tensor([0.1, 0.2, 0.0]), rtol=1e-4, atol=1e-6)
    assert largest_error(y + 2, y).tolist() == pytest.approx([2, 2, 2], rel=1e-5)
    truth, error = error_by_shell(1.1 * y[:, 0], y[:, 0])
    torch.testing.assert_close(error, 0.01 * truth, rtol=1e-4, atol=1e-9)


def test_shapes_must_fit():
    with pytest.raises(ShapeError, match="differ"):
        relative_l2(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="at least 4"):
        relative_h1(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3), periodic=False)
