"""Two-dimensional incompressible flow on the periodic unit square, as vorticity.

``w_t + u . grad w = nu Laplace w + f`` with ``u = (psi_y, -psi_x)`` and ``-Laplace psi = w``. Fourier in space;
products are taken in physical space with the 2/3 rule. Two schemes in time: "euler" (explicit Euler for the transport,
Crank-Nicolson for diffusion: the scheme of the published data sets, first order) and "rk4" (classical Runge-Kutta for
the transport with exact diffusion, fourth order).
Shapes: n samples, s points in each axis at i / s; axis 1 is x, axis 2 is y.
Source: Li et al., arXiv 2010.08895, appendix A.3.3.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from featherweight.errors import ConfigError, NumericsError, ShapeError

Scheme = Literal["euler", "rk4"]


def kolmogorov_forcing(size: int) -> Tensor:
    """Return ``f = 0.1 (sin 2 pi (x + y) + cos 2 pi (x + y))`` on (s, s) points, the forcing of the published data."""
    points = torch.arange(size, dtype=torch.float64) / size
    phase = 2 * math.pi * (points[:, None] + points)
    return 0.1 * (torch.sin(phase) + torch.cos(phase))


def solve_navier_stokes(
    initial: Tensor,
    *,
    viscosity: float,
    final_time: float,
    steps: int,
    forcing: Tensor | None = None,
    snapshots: int = 1,
    scheme: Scheme = "rk4",
) -> Tensor:
    """Advance the vorticity from t = 0 to `final_time`.

    Args:
        initial: (n, s, s) vorticity with mean zero, s even.
        viscosity: nu >= 0.
        final_time: T.
        steps: time steps, a multiple of `snapshots`.
        forcing: (s, s) or (n, s, s), constant in time; None for none.
        snapshots: how many equally spaced times are returned, the last one is T.
        scheme: "rk4" or "euler".
    Returns:
        (n, snapshots, s, s) float64.
    Raises:
        ShapeError: if the shapes do not fit.
        ConfigError: for an unknown scheme.
        NumericsError: if the solution leaves the number range: the time step is too long.
    Cost: 5 real FFTs of n s^2 values an evaluation of the transport; "rk4" takes four a step.
    """
    if initial.ndim != 3 or initial.shape[1] != initial.shape[2] or initial.shape[1] % 2 or steps % snapshots:
        raise ShapeError(
            f"solve_navier_stokes: initial={tuple(initial.shape)}, steps={steps}, snapshots={snapshots}; expected "
            "(n, s, s) with an even s, and a number of snapshots that divides steps. Reshape, or change steps."
        )
    if scheme not in ("euler", "rk4"):
        raise ConfigError(
            f"solve_navier_stokes: scheme='{scheme}' is unknown; expected 'rk4' or 'euler'. Choose one of them."
        )
    flow = _Flow(initial.shape[1], viscosity, final_time / steps, forcing, initial.device)
    advance = flow.step_rk4 if scheme == "rk4" else flow.step_euler
    w = torch.fft.rfft2(initial.double())
    taken = []
    for index in range(1, steps + 1):
        w = advance(w)
        if index % (steps // snapshots) == 0:
            taken.append(flow.field(w))
    result = torch.stack(taken, dim=1)
    if not bool(result.isfinite().all()):
        raise NumericsError(
            f"solve_navier_stokes: steps={steps} to final_time={final_time} are unstable; expected more steps. Double "
            "steps."
        )
    return result


class _Flow:
    """Wavenumbers and one step, on one-sided spectra (n, s, s // 2 + 1)."""

    def __init__(self, size: int, viscosity: float, dt: float, forcing: Tensor | None, device: torch.device) -> None:
        wave_x = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=device)[:, None]
        wave_y = torch.arange(size // 2 + 1, dtype=torch.float64, device=device)
        squares = 4 * math.pi**2 * (wave_x.square() + wave_y.square())
        inverse = 1 / torch.where(squares == 0, 1, squares)
        self.size, self.dt = size, dt
        self.derivative_x, self.derivative_y = 2j * math.pi * wave_x, 2j * math.pi * wave_y
        self.speed_x, self.speed_y = self.derivative_y * inverse, -self.derivative_x * inverse
        self.keep = ((wave_x.abs() <= size / 3) & (wave_y <= size / 3)).double()
        self.damping = viscosity * squares
        self.half_decay = torch.exp(-self.damping * dt / 2)
        self.forcing = 0.0 if forcing is None else torch.fft.rfft2(forcing.double().to(device))

    def field(self, w: Tensor) -> Tensor:
        """Return values at the points."""
        return torch.fft.irfft2(w, s=(self.size, self.size))

    def transport(self, w: Tensor) -> Tensor:
        """Return ``-u . grad w + f``."""
        product = self.field(self.speed_x * w) * self.field(self.derivative_x * w)
        product += self.field(self.speed_y * w) * self.field(self.derivative_y * w)
        return self.forcing - self.keep * torch.fft.rfft2(product)

    def step_euler(self, w: Tensor) -> Tensor:
        """Explicit Euler for the transport, Crank-Nicolson for diffusion."""
        half = self.dt * self.damping / 2
        return (self.dt * self.transport(w) + (1 - half) * w) / (1 + half)

    def step_rk4(self, w: Tensor) -> Tensor:
        """Classical Runge-Kutta in the variable ``exp(nu k^2 t) w``, in which diffusion is exact."""
        half, dt = self.half_decay, self.dt
        k1 = self.transport(w)
        k2 = self.transport(half * (w + dt / 2 * k1))
        k3 = self.transport(half * w + dt / 2 * k2)
        k4 = self.transport(half * (half * w + dt * k3))
        return half * (half * (w + dt / 6 * k1) + dt / 3 * (k2 + k3)) + dt / 6 * k4
