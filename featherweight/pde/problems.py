"""The problems that data sets are generated for, with the parameters of the literature as defaults.

A problem is a strict set of options and a function from generators (one for each sample) to inputs and solutions.
Source: Li et al., arXiv 2010.08895, appendix A.3.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from featherweight.config import Config
from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.pde.burgers import solve_burgers
from featherweight.pde.darcy import solve_darcy
from featherweight.pde.navier_stokes import kolmogorov_forcing, solve_navier_stokes
from featherweight.pde.random_field import neumann_field, periodic_field

_Timed = TypeVar("_Timed", "BurgersConfig", "NavierStokesConfig")


class DarcyConfig(Config):
    """Options of Darcy flow: coefficient to pressure."""

    resolution: int = Field(default=64, ge=4)
    """Points of the stored fields in each axis, ends included."""
    refine: int = Field(default=2, ge=1)
    """Cells of the solver's grid in each cell of the stored one; the published data have 421 nodes for 85 or 141."""
    coefficient: Literal["piecewise", "lognormal"] = "piecewise"
    """Two values, by the sign of a Gaussian field; or its exponential."""
    high: float = Field(default=12.0, gt=0)
    """Coefficient where the field is positive. The public MATLAB script has 12 and 4, the paper 12 and 3."""
    low: float = Field(default=3.0, gt=0)
    """Coefficient where the field is negative."""
    alpha: float = Field(default=2.0, gt=1)
    """Decay of the field's spectrum."""
    tau: float = Field(default=3.0, gt=0)
    """Inverse length scale of the field."""


class BurgersConfig(Config):
    """Options of Burgers' equation: initial state to the state at `final_time`."""

    resolution: int = Field(default=256, ge=8)
    """Points of the stored states."""
    refine: int = Field(default=4, ge=1)
    """Points of the solver for each stored one; the published data are solved on 8192."""
    viscosity: float = Field(default=0.1, gt=0)
    """nu."""
    final_time: float = Field(default=1.0, gt=0)
    """T."""
    steps: int = Field(default=400, ge=1)
    """Time steps."""
    snapshots: int = Field(default=1, ge=1)
    """Stored times of the solution, equally spaced up to T."""
    alpha: float = Field(default=2.0, gt=0.5)
    """Decay of the initial state's spectrum."""
    tau: float = Field(default=5.0, gt=0)
    """Inverse length scale of the initial state."""
    sigma: float = Field(default=25.0, gt=0)
    """Amplitude: the covariance is 625 (-Laplace + 25)^-2."""

    @model_validator(mode="after")
    def _times_fit(self) -> "BurgersConfig":
        return _require_times(self)


class NavierStokesConfig(Config):
    """Options of two-dimensional flow: vorticity at 0 to the vorticity at `final_time`."""

    resolution: int = Field(default=64, ge=8, multiple_of=2)
    """Points of the stored fields in each axis."""
    refine: int = Field(default=1, ge=1)
    """Points of the solver in each axis for each stored one; the published data are solved on 256 for 64."""
    viscosity: float = Field(default=1e-3, ge=0)
    """nu: 1e-3, 1e-4 or 1e-5 in the published data."""
    forced: bool = True
    """Drive the flow with 0.1 (sin 2 pi (x + y) + cos 2 pi (x + y))."""
    final_time: float = Field(default=1.0, gt=0)
    """T: 50, 30 or 20 in the published data."""
    steps: int = Field(default=200, ge=1)
    """Time steps; "euler" needs some 10,000 for each unit of time, "rk4" 100 at this viscosity."""
    scheme: Literal["rk4", "euler"] = "rk4"
    """Time stepping; see `solve_navier_stokes`."""
    snapshots: int = Field(default=1, ge=1)
    """Stored times of the solution, equally spaced up to T."""
    alpha: float = Field(default=2.5, gt=1)
    """Decay of the initial vorticity's spectrum."""
    tau: float = Field(default=7.0, gt=0)
    """Inverse length scale of the initial vorticity."""

    @model_validator(mode="after")
    def _times_fit(self) -> "NavierStokesConfig":
        return _require_times(self)


def _require_times(config: _Timed) -> _Timed:
    if config.steps % config.snapshots:
        raise ValueError(
            f"snapshots={config.snapshots} does not divide steps={config.steps}; expected a divisor. Change steps."
        )
    return config


def darcy_samples(config: DarcyConfig, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw coefficients and solve for the pressures.

    Args:
        config: options.
        generators: one for each sample.
    Returns:
        Two (n, s, s) float64 fields.
    """
    nodes = (config.resolution - 1) * config.refine + 1
    field = neumann_field(nodes, alpha=config.alpha, tau=config.tau, generators=generators)
    a = field.exp() if config.coefficient == "lognormal" else torch.where(field >= 0, config.high, config.low).double()
    u = solve_darcy(a)
    return a[:, :: config.refine, :: config.refine], u[:, :: config.refine, :: config.refine]


def burgers_samples(config: BurgersConfig, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw initial states and solve for later ones: (n, s) and (n, s), or (n, snapshots, s) for several times."""
    size = config.resolution * config.refine
    initial = periodic_field(size, 1, alpha=config.alpha, tau=config.tau, sigma=config.sigma, generators=generators)
    u = solve_burgers(
        initial,
        viscosity=config.viscosity,
        final_time=config.final_time,
        steps=config.steps,
        snapshots=config.snapshots,
    )
    return initial[:, :: config.refine], _without_single_time(u[:, :, :: config.refine])


def navier_stokes_samples(config: NavierStokesConfig, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw initial vorticities and solve for later ones: (n, s, s) and (n, s, s), or (n, snapshots, s, s)."""
    size = config.resolution * config.refine
    # The published code draws real and imaginary parts of variance one each, which doubles the variance of the formula.
    sigma = 2**0.5 * config.tau ** (config.alpha - 1)
    initial = periodic_field(size, 2, alpha=config.alpha, tau=config.tau, sigma=sigma, generators=generators)
    w = solve_navier_stokes(
        initial,
        viscosity=config.viscosity,
        final_time=config.final_time,
        steps=config.steps,
        forcing=kolmogorov_forcing(size) if config.forced else None,
        snapshots=config.snapshots,
        scheme=config.scheme,
    )
    every = config.refine
    return initial[:, ::every, ::every], _without_single_time(w[:, :, ::every, ::every])


def _without_single_time(solution: Tensor) -> Tensor:
    return solution[:, 0] if solution.shape[1] == 1 else solution


class Problem(NamedTuple):
    """Options and samples of one problem."""

    config: type[Config]
    samples: Callable[..., tuple[Tensor, Tensor]]
    is_periodic: bool


PROBLEMS: dict[str, Problem] = {
    "darcy": Problem(DarcyConfig, darcy_samples, False),
    "burgers": Problem(BurgersConfig, burgers_samples, True),
    "navier_stokes": Problem(NavierStokesConfig, navier_stokes_samples, True),
}
"""Every problem by the name that commands and files use."""


def find_problem(name: str) -> Problem:
    """Return a problem by name.

    Raises:
        ConfigError: if it is unknown.
    """
    if name not in PROBLEMS:
        raise ConfigError(
            f"pde: problem='{name}' is unknown; expected one of {', '.join(PROBLEMS)}. "
            f"{did_you_mean(name, PROBLEMS, otherwise=LISTED)}"
        )
    return PROBLEMS[name]
