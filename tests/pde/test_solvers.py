"""Solvers against exact solutions, conservation laws and orders of convergence, in double precision."""

import math

import pytest
import torch
from torch import Tensor

from featherweight.errors import ConfigError, NumericsError, ShapeError
from featherweight.pde.burgers import solve_burgers
from featherweight.pde.darcy import solve_darcy
from featherweight.pde.navier_stokes import kolmogorov_forcing, solve_navier_stokes
from featherweight.pde.random_field import neumann_field, periodic_field
from featherweight.pde.spectral import cosine_synthesis, halved, shell_spectrum, sine_transform

PI = math.pi


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def error(one: Tensor, two: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - two) / torch.linalg.vector_norm(two))


# ---- Darcy


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


# ---- Burgers


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


# ---- Navier-Stokes


def taylor_green(size: int) -> Tensor:
    wave = torch.cos(2 * PI * torch.arange(size, dtype=torch.float64) / size)
    return (2 * wave[:, None] * wave)[None]


def test_euler_scheme_decays_taylor_green_with_its_known_errors():
    w, exact = taylor_green(32), taylor_green(32) * math.exp(-8 * PI**2 * 0.01)
    errors = [
        error(solve_navier_stokes(w, viscosity=0.01, final_time=1.0, steps=steps, scheme="euler")[:, 0], exact)
        for steps in (100, 1000)
    ]
    # Those of Crank-Nicolson, to their two digits; the transport of this flow vanishes.
    assert errors == pytest.approx([4.1e-6, 4.1e-8], rel=0.01)


def test_runge_kutta_decays_taylor_green_exactly():
    w = taylor_green(32)
    u = solve_navier_stokes(w, viscosity=0.01, final_time=1.0, steps=10)[:, 0]
    assert error(u, w * math.exp(-8 * PI**2 * 0.01)) < 1e-13


@pytest.mark.parametrize(("scheme", "order", "steps"), [("euler", 1, (100, 200)), ("rk4", 4, (10, 20))])
def test_schemes_have_their_orders_on_a_random_field(scheme, order, steps):
    w = periodic_field(32, 2, alpha=2.5, tau=7, generators=generators(2))
    options = {"viscosity": 1e-3, "final_time": 1.0, "forcing": kolmogorov_forcing(32)}
    reference = solve_navier_stokes(w, steps=200, **options)
    errors = [error(solve_navier_stokes(w, steps=n, scheme=scheme, **options), reference) for n in steps]
    # Measured 1.00 and 3.98.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_inviscid_flow_conserves_mean_energy_and_enstrophy():
    size = 32
    wavenumber = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    squares = wavenumber[:, None] ** 2 + wavenumber**2
    keep = ((wavenumber.abs()[:, None] <= size / 3) & (wavenumber.abs() <= size / 3)).double()
    rough = periodic_field(size, 2, alpha=2.5, tau=3, generators=generators(2)) * 20
    w = torch.fft.ifft2(torch.fft.fft2(rough) * keep).real
    later = solve_navier_stokes(w, viscosity=0.0, final_time=1.0, steps=400)[:, 0]
    assert error(later, w) > 0.1  # it moved

    def invariants(field: Tensor) -> list[float]:
        spectrum = torch.fft.fft2(field, norm="forward").abs().square()
        inverse = torch.where(squares > 0, 1 / squares.clamp_min(1), 0)
        return [float((spectrum * weight).sum()) for weight in (inverse, torch.ones_like(inverse))]

    # Error of the time step: measured 7e-11. Without the 2/3 rule 1e-5.
    assert invariants(later) == pytest.approx(invariants(w), rel=1e-9)
    assert float(later.mean(dim=(1, 2)).abs().max()) < 1e-13


def test_forced_flow_balances_a_steady_state():
    # With psi on one shell the transport vanishes, so w = f / (nu k^2) stands still.
    f = kolmogorov_forcing(16)
    w = (f / (0.1 * 8 * PI**2))[None]
    later = solve_navier_stokes(w, viscosity=0.1, final_time=1.0, steps=50, forcing=f, scheme="euler")[:, 0]
    assert error(later, w) < 1e-12


def test_navier_stokes_refuses_odd_grids_and_unknown_schemes():
    with pytest.raises(ShapeError, match="even s"):
        solve_navier_stokes(torch.zeros(1, 7, 7), viscosity=1, final_time=1, steps=1)
    with pytest.raises(ConfigError, match="rk4"):
        solve_navier_stokes(torch.zeros(1, 8, 8), viscosity=1, final_time=1, steps=1, scheme="rk5")


# ---- fields and transforms


def test_transforms_are_orthonormal():
    x = torch.randn(5, 7, dtype=torch.float64, generator=generators(1)[0])
    torch.testing.assert_close(sine_transform(sine_transform(x, 1), 1), x, rtol=1e-13, atol=1e-13)
    index = torch.arange(7, dtype=torch.float64)
    basis = torch.cos(PI * index[:, None] * (index + 0.5) / 7) * (2 / 7) ** 0.5
    basis[0] /= 2**0.5
    torch.testing.assert_close(cosine_synthesis(x, 1), x @ basis, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("inner", [93, 253])
def test_sine_transforms_of_slow_lengths_are_products_with_their_matrix(inner):
    x = torch.randn(2, inner, dtype=torch.float64, generator=generators(1)[0])
    odd = torch.nn.functional.pad(torch.cat([x, -x.flip(1)], dim=1), (1, 0))
    odd = torch.cat([odd[:, : inner + 1], torch.zeros(2, 1), odd[:, inner + 1 :]], dim=1)
    sums = -torch.fft.rfft(odd).imag[:, 1 : inner + 1] / (2 * (inner + 1)) ** 0.5
    torch.testing.assert_close(sine_transform(x, 1), sums, rtol=1e-12, atol=1e-12)
    assert error(sine_transform(sine_transform(x.T, 0), 0), x.T) < 1e-13


def test_a_halved_field_keeps_the_frequencies_that_its_points_can_tell_apart():
    grid = torch.arange(16, dtype=torch.float64) / 16
    low, high = torch.cos(2 * PI * 3 * grid), torch.cos(2 * PI * 4 * grid)
    assert error(halved((low + high)[None])[0], low[::2]) < 1e-14
    plane = low[:, None] * torch.sin(2 * PI * grid)
    assert error(halved(plane[None])[0], plane[::2, ::2]) < 1e-14


def test_periodic_fields_have_the_variance_of_their_covariance():
    fields = periodic_field(32, 2, alpha=2.5, tau=7, generators=generators(600))
    k = torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    spectrum = 7.0**3 * (4 * PI**2 * (k[:, None] ** 2 + k**2) + 49) ** -2.5
    spectrum[0, 0] = 0
    # The variance of 600 fields with some 10 strong modes each: 3 % is three standard errors.
    assert float(fields.var()) == pytest.approx(float(spectrum.sum()), rel=0.06)
    assert float(fields.mean(dim=(1, 2)).abs().max()) < 1e-14
    with pytest.raises(ConfigError, match="infinite variance"):
        periodic_field(8, 2, alpha=1.0, tau=1, generators=generators(1))


def test_shells_add_up_to_the_mean_square():
    w = periodic_field(16, 2, alpha=4, tau=3, generators=generators(2))
    spectrum = shell_spectrum(w)
    corner = float(w.square().mean() - spectrum.sum())
    assert len(spectrum) == 9 and 0 <= corner < 1e-3 * float(w.square().mean())
