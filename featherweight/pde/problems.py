"""The problems that data sets are generated for, with the parameters of the literature as defaults.

A problem is a strict set of options and a function from generators (one for each sample) to inputs and solutions.
Sources: Li et al., arXiv 2010.08895, appendix A.3; `wave_problems` has those of PDEBench.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from featherweight.config import Config
from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.pde.burgers import solve_burgers
from featherweight.pde.darcy import solve_darcy
from featherweight.pde.navier_stokes import kolmogorov_forcing, solve_navier_stokes
from featherweight.pde.random_field import neumann_field, periodic_field
from featherweight.pde.time_errors import (
    TIME_TOLERANCE,
    difference,
    require_times,
    steps_for,
    timed_errors,
    without_single_time,
)
from featherweight.pde.wave_problems import (
    AdvectionConfig,
    ReactionDiffusionConfig,
    ShallowWaterConfig,
    advection_errors,
    advection_samples,
    reaction_diffusion_errors,
    reaction_diffusion_samples,
    shallow_water_errors,
    shallow_water_samples,
)


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

    def resolved(self) -> "DarcyConfig":
        """Return the options with a number for each that was left open: these."""
        return self


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
    steps: int | None = Field(default=None, ge=1)
    """Time steps; None: 400 for each unit of time (at least one unit), more for viscosities below 1 / 400."""
    time_tolerance: float | None = Field(default=TIME_TOLERANCE, gt=0)
    """Largest relative error by the time step, estimated on two samples; a data set with more is refused. None: any."""
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
        return require_times(self)

    def resolved(self) -> "BurgersConfig":
        """Return the options with a number for each that was left open."""
        # A front moves at a speed near 1 and is as thin as the viscosity: a step must not cross it, nor two points.
        rate = max(400, min(2 * self.resolution * self.refine, 1 / self.viscosity))
        return self if self.steps else self.model_copy(update={"steps": steps_for(self, rate)})


class NavierStokesConfig(Config):
    """Options of two-dimensional flow: vorticity at 0 to the vorticity at `final_time`."""

    resolution: int = Field(default=64, ge=8, multiple_of=2)
    """Points of the stored fields in each axis."""
    refine: int | None = Field(default=None, ge=1)
    """Points of the solver in each axis for each stored one. None: 1 down to the viscosity 1e-3, below as many as make
    64 (1e-3 / viscosity)^0.3 points of each axis, at most 256; the published data are solved on 256 for 64."""
    viscosity: float = Field(default=1e-3, ge=0)
    """nu: 1e-3, 1e-4 or 1e-5 in the published data."""
    forced: bool = True
    """Drive the flow with 0.1 (sin 2 pi (x + y) + cos 2 pi (x + y))."""
    final_time: float = Field(default=1.0, gt=0)
    """T: 50, 30 or 20 in the published data."""
    steps: int | None = Field(default=None, ge=1)
    """Time steps. None: for each unit of time (at least one) 200 with "rk4" and 10,000 with "euler", or as many as the
    solver has points in an axis (with "euler" 40 times as many), if that is more."""
    time_tolerance: float | None = Field(default=TIME_TOLERANCE, gt=0)
    """Largest relative error by the time step, estimated on two samples; a data set with more is refused. None: any."""
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
        return require_times(self)

    def resolved(self) -> "NavierStokesConfig":
        """Return the options with a number for each that was left open."""
        refine = self.refine or 1
        if self.refine is None and self.viscosity < 1e-3:
            # The width of the thinnest vortices goes as viscosity^(1/2) at most. Against 128 points, at the published
            # times: 64 points are 2.8 % off at 1e-4 (96: 0.5 %), and 7.2 % at 1e-5 (96: 3.9 %).
            points = min(256, 64 * (1e-3 / self.viscosity) ** 0.3) if self.viscosity else 256
            refine = math.ceil(points / self.resolution - 1e-9)
        size = self.resolution * refine
        rate = max(200, size) if self.scheme == "rk4" else max(10_000, 40 * size)
        return self.model_copy(update={"refine": refine, "steps": self.steps or steps_for(self, rate)})


def darcy_samples(config: DarcyConfig, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw coefficients and solve for the pressures.

    Args:
        config: options.
        generators: one for each sample.
    Returns:
        Two (n, s, s) float64 fields.
    """
    a = _darcy_coefficient(config, generators)
    u = solve_darcy(a)
    return a[:, :: config.refine, :: config.refine], u[:, :: config.refine, :: config.refine]


def darcy_errors(config: DarcyConfig, generators: Sequence[Generator]) -> dict[str, float]:
    """Return "half_grid": the change of the pressures on every second point of the solver's grid, if it has one."""
    a = _darcy_coefficient(config, generators)
    if a.shape[1] % 2 == 0 or a.shape[1] < 7:
        return {}
    return {"half_grid": difference(solve_darcy(a[:, ::2, ::2]), solve_darcy(a)[:, ::2, ::2])}


def _darcy_coefficient(config: DarcyConfig, generators: Sequence[Generator]) -> Tensor:
    nodes = (config.resolution - 1) * config.refine + 1
    field = neumann_field(nodes, alpha=config.alpha, tau=config.tau, generators=generators)
    return (
        field.exp() if config.coefficient == "lognormal" else torch.where(field >= 0, config.high, config.low).double()
    )


def burgers_samples(config: BurgersConfig, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw initial states and solve for later ones: (n, s) and (n, s), or (n, snapshots, s) for several times."""
    initial = _burgers_initial(config, generators)
    u = _burgers_solution(config, initial)
    return initial[:, :: config.refine], without_single_time(u[:, :, :: config.refine])


def burgers_errors(config: BurgersConfig, generators: Sequence[Generator]) -> dict[str, float]:
    """Return "time_step" and "half_grid"; see `timed_errors`."""
    # Of fourth order on smooth states; on these, which are rough, errors fall by 6 where steps are halved, not by 16.
    return timed_errors(config, _burgers_initial(config, generators), _burgers_solution, order=2)


def _burgers_initial(config: BurgersConfig, generators: Sequence[Generator]) -> Tensor:
    size = config.resolution * config.refine
    return periodic_field(size, 1, alpha=config.alpha, tau=config.tau, sigma=config.sigma, generators=generators)


def _burgers_solution(config: BurgersConfig, initial: Tensor) -> Tensor:
    steps = config.resolved().steps
    assert steps is not None
    return solve_burgers(
        initial,
        viscosity=config.viscosity,
        final_time=config.final_time,
        steps=steps,
        snapshots=config.snapshots,
    )


def navier_stokes_samples(config: NavierStokesConfig, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw initial vorticities and solve for later ones: (n, s, s) and (n, s, s), or (n, snapshots, s, s)."""
    initial = _navier_stokes_initial(config, generators)
    w = _navier_stokes_solution(config, initial)
    every = config.resolved().refine
    return initial[:, ::every, ::every], without_single_time(w[:, :, ::every, ::every])


def navier_stokes_errors(config: NavierStokesConfig, generators: Sequence[Generator]) -> dict[str, float]:
    """Return "time_step" and "half_grid"; see `timed_errors`."""
    initial = _navier_stokes_initial(config, generators)
    return timed_errors(config, initial, _navier_stokes_solution, order=4 if config.scheme == "rk4" else 1)


def _navier_stokes_initial(config: NavierStokesConfig, generators: Sequence[Generator]) -> Tensor:
    size = config.resolution * (config.resolved().refine or 1)
    # The published code draws real and imaginary parts of variance one each, which doubles the variance of the formula.
    sigma = 2**0.5 * config.tau ** (config.alpha - 1)
    return periodic_field(size, 2, alpha=config.alpha, tau=config.tau, sigma=sigma, generators=generators)


def _navier_stokes_solution(config: NavierStokesConfig, initial: Tensor) -> Tensor:
    steps = config.resolved().steps
    assert steps is not None
    return solve_navier_stokes(
        initial,
        viscosity=config.viscosity,
        final_time=config.final_time,
        steps=steps,
        forcing=kolmogorov_forcing(initial.shape[1]) if config.forced else None,
        snapshots=config.snapshots,
        scheme=config.scheme,
    )


class Problem(NamedTuple):
    """Options and samples of one problem."""

    config: type[Config]
    """Its method `resolved` gives a number to every option that was left open."""
    samples: Callable[..., tuple[Tensor, Tensor]]
    """(options, generators) to inputs and solutions."""
    errors: Callable[..., dict[str, float]]
    """(options, generators) to estimates of the solver's errors by name."""
    is_periodic: bool
    """Whether its fields wrap around."""
    dimensions: int
    """Axes of its fields, unless an option of that name says otherwise."""

    def axes_of(self, config: Config) -> int:
        """Return how many axes fields have under some options."""
        return int(getattr(config, "dimensions", self.dimensions))


PROBLEMS: dict[str, Problem] = {
    "darcy": Problem(DarcyConfig, darcy_samples, darcy_errors, False, 2),
    "burgers": Problem(BurgersConfig, burgers_samples, burgers_errors, True, 1),
    "navier_stokes": Problem(NavierStokesConfig, navier_stokes_samples, navier_stokes_errors, True, 2),
    "advection": Problem(AdvectionConfig, advection_samples, advection_errors, True, 1),
    "reaction_diffusion": Problem(
        ReactionDiffusionConfig, reaction_diffusion_samples, reaction_diffusion_errors, True, 1
    ),
    "shallow_water": Problem(ShallowWaterConfig, shallow_water_samples, shallow_water_errors, True, 2),
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
