"""Burgers' equation against the exact solution of Cole and Hopf, conservation and dissipation, in double precision."""

import math

import pytest
import torch
from pde_fields import error, generators
from torch import Tensor

from featherweight.errors import NumericsError, ShapeError
from featherweight.pde.burgers import solve_burgers
from featherweight.pde.random_field import periodic_field

PI = math.pi


def cole_hopf(size: int, viscosity: float, time: float) -> Tensor:
    """Exact solution from u(x, 0) = sin 2 pi x: u = -2 nu phi_x / phi, where phi solves the heat equation."""
    fine = 16 * size
    x = torch.arange(fine, dtype=torch.float64) / fine
    wavenumber = 2 * PI * torch.arange(fine // 2 + 1, dtype=torch.float64)
    phi = torch.fft.rfft(torch.exp((torch.cos(2 * PI * x) - 1) / (4 * PI * viscosity)))
    phi = phi * torch.exp(-viscosity * wavenumber**2 * time)
    u = -2 * viscosity * torch.fft.irfft(1j * wavenumber * phi) / torch.fft.irfft(phi)
    return u[::16]


def test_burgers_converges_with_fourth_order_to_cole_hopf():
    initial = torch.sin(2 * PI * torch.arange(256, dtype=torch.float64) / 256)
    exact = cole_hopf(256, 0.01, 1.0)
    errors = [
        error(solve_burgers(initial[None], viscosity=0.01, final_time=1.0, steps=steps)[0, 0], exact)
        for steps in (50, 100, 200)
    ]
    # The known errors, to their two digits; each is a fifteenth of the one before, as of a scheme of fourth order.
    assert errors == pytest.approx([1.8e-6, 1.2e-7, 7.8e-9], rel=0.03)


def test_burgers_conserves_the_mean_and_dissipates_energy():
    initial = 0.3 + periodic_field(128, 1, alpha=2, tau=5, sigma=25, generators=generators(3))
    u = solve_burgers(initial, viscosity=0.01, final_time=0.5, steps=200, snapshots=5)
    torch.testing.assert_close(u.mean(dim=2), initial.mean(dim=1, keepdim=True).expand(3, 5), rtol=0, atol=1e-13)
    energy = torch.cat([initial[:, None], u], dim=1).square().mean(dim=2)
    assert bool((energy.diff(dim=1) < 0).all())


def test_burgers_refuses_wrong_shapes_and_unstable_steps():
    with pytest.raises(ShapeError, match="divides steps"):
        solve_burgers(torch.zeros(1, 8), viscosity=0.1, final_time=1, steps=5, snapshots=2)
    with pytest.raises(NumericsError, match="Double steps"):
        solve_burgers(1e6 * torch.randn(1, 64), viscosity=1e-6, final_time=100, steps=20)
