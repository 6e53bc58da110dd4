"""The problems that data sets are generated for, with the parameters of the literature as defaults.

A problem is a strict set of options and a function from generators (one for each sample) to inputs and solutions.
Sources: Li et al., arXiv 2010.08895, appendix A.3; `wave_problems` has those of PDEBench.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from featherweight.config import Config
from featherweight.pde.burgers import solve_burgers
from featherweight.pde.darcy import solve_darcy
from featherweight.pde.navier_stokes import kolmogorov_forcing, solve_navier_stokes
from featherweight.pde.problem_options import (
    PROBLEM_OPTIONS,
    BurgersConfig,
    DarcyConfig,
    NavierStokesConfig,
    require_problem,
)
from featherweight.pde.random_field import neumann_field, periodic_field
from featherweight.pde.time_errors import difference, timed_errors, without_single_time
from featherweight.pde.wave_problems import (
    advection_errors,
    advection_samples,
    reaction_diffusion_errors,
    reaction_diffusion_samples,
    shallow_water_errors,
    shallow_water_samples,
)


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
    dimensions: int
    """Axes of its fields, unless an option of that name says otherwise."""
    samples: Callable[..., tuple[Tensor, Tensor]]
    """(options, generators) to inputs and solutions."""
    errors: Callable[..., dict[str, float]]
    """(options, generators) to estimates of the solver's errors by name."""
    is_periodic: bool
    """Whether its fields wrap around."""

    def axes_of(self, config: Config) -> int:
        """Return how many axes fields have under some options."""
        return int(getattr(config, "dimensions", self.dimensions))


PROBLEMS: dict[str, Problem] = {
    name: Problem(*PROBLEM_OPTIONS[name], samples, errors, is_periodic)
    for name, samples, errors, is_periodic in (
        ("darcy", darcy_samples, darcy_errors, False),
        ("burgers", burgers_samples, burgers_errors, True),
        ("navier_stokes", navier_stokes_samples, navier_stokes_errors, True),
        ("advection", advection_samples, advection_errors, True),
        ("reaction_diffusion", reaction_diffusion_samples, reaction_diffusion_errors, True),
        ("shallow_water", shallow_water_samples, shallow_water_errors, True),
    )
}
"""Every problem by the name that commands and files use."""


def find_problem(name: str) -> Problem:
    """Return a problem by name.

    Raises:
        ConfigError: if it is unknown.
    """
    require_problem(name)
    return PROBLEMS[name]
