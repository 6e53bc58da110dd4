"""Darcy flow against a manufactured solution, a dense solve and what any solution obeys, in double precision."""

import math

import pytest
import torch
from pde_fields import error, generators
from torch import Tensor

from featherweight.errors import NumericsError, ShapeError
from featherweight.pde.darcy import solve_darcy
from featherweight.pde.random_field import neumann_field

PI = math.pi


def manufactured(nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """u = sin(pi x) sin(pi y), a = 1 + x y, and f = -div(a grad u) by hand."""
    grid = torch.linspace(0, 1, nodes, dtype=torch.float64)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    u, a = torch.sin(PI * x) * torch.sin(PI * y), 1 + x * y
    slope = y * torch.cos(PI * x) * torch.sin(PI * y) + x * torch.sin(PI * x) * torch.cos(PI * y)
    return u, a, 2 * PI**2 * a * u - PI * slope


def test_darcy_converges_with_second_order_to_a_manufactured_solution():
    errors = []
    for nodes in (17, 33, 65, 129):
        u, a, f = manufactured(nodes)
        errors.append(error(solve_darcy(a[None], f)[0], u))
    # The known errors of this scheme, to their four digits. A harmonic mean on the faces gives others.
    assert errors == pytest.approx([3.201e-3, 7.992e-4, 1.997e-4, 4.993e-5], rel=2e-4)


def test_darcy_equals_a_direct_solve_of_the_dense_system():
    nodes = 9
    a = torch.where(torch.rand(1, nodes, nodes, generator=generators(1)[0]) > 0.5, 12.0, 3.0).double()
    inner = nodes - 2
    matrix = torch.zeros(inner * inner, inner * inner, dtype=torch.float64)
    for i in range(1, nodes - 1):
        for j in range(1, nodes - 1):
            row = (i - 1) * inner + j - 1
            for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                face = (a[0, i, j] + a[0, i + di, j + dj]) / 2 * (nodes - 1) ** 2
                matrix[row, row] += face
                if 1 <= i + di < nodes - 1 and 1 <= j + dj < nodes - 1:
                    matrix[row, (i - 1 + di) * inner + j - 1 + dj] -= face
    direct = torch.linalg.solve(matrix, torch.ones(inner * inner, dtype=torch.float64)).view(inner, inner)
    assert error(solve_darcy(a)[0, 1:-1, 1:-1], direct) < 1e-9  # tolerance of the iteration 1e-10


def test_darcy_obeys_the_maximum_principle_and_its_boundary():
    a = torch.where(neumann_field(65, alpha=2, tau=3, generators=generators(4)) >= 0, 12.0, 3.0)
    u = solve_darcy(a)
    assert bool((u[:, 1:-1, 1:-1] > 0).all())
    assert not any(bool(edge.any()) for edge in (u[:, 0], u[:, -1], u[:, :, 0], u[:, :, -1]))
    # The work of the source is monotone in the coefficient: between those of 12 everywhere and of 3 everywhere.
    work, unit = u.sum(dim=(1, 2)), float(solve_darcy(torch.ones(1, 65, 65)).sum())
    assert bool((work > unit / 12).all()) and bool((work < unit / 3).all())


def test_a_sample_of_darcy_does_not_depend_on_its_company():
    a = torch.where(neumann_field(33, alpha=2, tau=3, generators=generators(3)) >= 0, 12.0, 3.0)
    a[1] = 1.0  # converges in one iteration
    together = solve_darcy(a)
    for one, alone in zip(together, a, strict=True):
        assert error(solve_darcy(alone[None])[0], one) < 1e-12


def test_darcy_refuses_what_it_cannot_solve():
    with pytest.raises(NumericsError, match="positive finite"):
        solve_darcy(torch.zeros(1, 5, 5))
    with pytest.raises(ShapeError, match="square"):
        solve_darcy(torch.ones(5, 5))
