"""Further problems, of PDEBench's list: advection, reaction and diffusion in one to three axes, shallow water in two.

Options and samples, as `problems` has them.
Source: PDEBench, arXiv 2210.07182, appendix D.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from featherweight.config import Config
from featherweight.pde.advection import solve_advection, waves_field
from featherweight.pde.random_field import periodic_field
from featherweight.pde.reaction_diffusion import solve_reaction_diffusion
from featherweight.pde.shallow_water import COURANT, fastest_wave, solve_shallow_water
from featherweight.pde.time_errors import (
    TIME_TOLERANCE,
    difference,
    require_times,
    steps_for,
    timed_errors,
    without_single_time,
)


class AdvectionConfig(Config):
    """Options of advection: initial state to the state at `final_time`."""

    resolution: int = Field(default=128, ge=4)
    """Points of an axis; PDEBench stores 1024."""
    dimensions: Literal[1, 2, 3] = 1
    """Axes."""
    speed: float | list[float] = 0.4
    """c of every axis, or one for each, in unit cubes for a unit of time; 0.1 to 7 in PDEBench."""
    final_time: float = Field(default=2.0, gt=0)
    """T."""
    snapshots: int = Field(default=1, ge=1)
    """Stored times of the solution, equally spaced up to T."""
    waves: int = Field(default=2, ge=1)
    """Plane waves of an initial state, with amplitudes in [0, 1]."""
    largest_wavenumber: int = Field(default=8, ge=1)
    """Wavenumbers are whole and at most this."""

    @model_validator(mode="after")
    def _fits(self) -> "AdvectionConfig":
        if isinstance(self.speed, list) and len(self.speed) != self.dimensions:
            raise ValueError(
                f"speed={self.speed} has {len(self.speed)} numbers for dimensions={self.dimensions}; expected one for "
                "each axis. Give as many."
            )
        if 2 * self.largest_wavenumber >= self.resolution:
            raise ValueError(
                f"largest_wavenumber={self.largest_wavenumber} is too short a wave for resolution={self.resolution}; "
                f"expected less than {self.resolution / 2:g}. Lower it."
            )
        return self

    def resolved(self) -> "AdvectionConfig":
        """Return the options with a number for each that was left open: these."""
        return self

    @property
    def speeds(self) -> list[float]:
        """One for each axis."""
        return self.speed if isinstance(self.speed, list) else [self.speed] * self.dimensions


def advection_samples(config: AdvectionConfig, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw initial states and move them: (n, points) and (n, points), or (n, snapshots, points)."""
    initial = waves_field(
        config.resolution,
        config.dimensions,
        largest=config.largest_wavenumber,
        count=config.waves,
        generators=generators,
    )
    moved = solve_advection(initial, speed=config.speeds, final_time=config.final_time, snapshots=config.snapshots)
    return initial, without_single_time(moved)


def advection_errors(config: AdvectionConfig, generators: Sequence[Generator]) -> dict[str, float]:
    """Return nothing: the solution is exact."""
    return {}


class ReactionDiffusionConfig(Config):
    """Options of reaction and diffusion: initial state to the state at `final_time`."""

    resolution: int = Field(default=128, ge=8)
    """Points of an axis; PDEBench stores 1024 in one axis."""
    dimensions: Literal[1, 2, 3] = 1
    """Axes."""
    viscosity: float = Field(default=5e-3, ge=0)
    """nu; PDEBench has 0.5 to 5, which leaves nothing but the mean."""
    reaction: float = Field(default=1.0, ge=0)
    """rho; 1 to 10 in PDEBench."""
    final_time: float = Field(default=1.0, gt=0)
    """T."""
    steps: int | None = Field(default=None, ge=1)
    """Time steps; None: 100 for each unit of time and of rho (at least one of each)."""
    time_tolerance: float | None = Field(default=TIME_TOLERANCE, gt=0)
    """Largest relative error by the time step, estimated on two samples; a data set with more is refused. None: any."""
    snapshots: int = Field(default=1, ge=1)
    """Stored times of the solution, equally spaced up to T."""
    alpha: float = Field(default=3.0, gt=1.5)
    """Decay of the initial state's spectrum."""
    tau: float = Field(default=10.0, gt=0)
    """Inverse length scale of the initial state."""

    @model_validator(mode="after")
    def _times_fit(self) -> "ReactionDiffusionConfig":
        return require_times(self)

    def resolved(self) -> "ReactionDiffusionConfig":
        """Return the options with a number for each that was left open."""
        rate = 100 * max(1.0, self.reaction)
        return self if self.steps else self.model_copy(update={"steps": steps_for(self, rate)})


def reaction_diffusion_samples(
    config: ReactionDiffusionConfig, generators: Sequence[Generator]
) -> tuple[Tensor, Tensor]:
    """Draw initial states in [0, 1] and solve: (n, points) and (n, points), or (n, snapshots, points)."""
    initial = _reaction_initial(config, generators)
    return initial, without_single_time(_reaction_solution(config, initial))


def reaction_diffusion_errors(config: ReactionDiffusionConfig, generators: Sequence[Generator]) -> dict[str, float]:
    """Return "time_step" and "half_grid"; see `timed_errors`."""
    return timed_errors(config, _reaction_initial(config, generators), _reaction_solution, order=2)


def _reaction_initial(config: ReactionDiffusionConfig, generators: Sequence[Generator]) -> Tensor:
    field = periodic_field(
        config.resolution, config.dimensions, alpha=config.alpha, tau=config.tau, generators=generators
    )
    axes = tuple(range(1, field.ndim))
    low, high = field.amin(axes, keepdim=True), field.amax(axes, keepdim=True)
    return (field - low) / (high - low)


def _reaction_solution(config: ReactionDiffusionConfig, initial: Tensor) -> Tensor:
    steps = config.resolved().steps
    assert steps is not None
    return solve_reaction_diffusion(
        initial,
        viscosity=config.viscosity,
        reaction=config.reaction,
        final_time=config.final_time,
        steps=steps,
        snapshots=config.snapshots,
    )


class ShallowWaterConfig(Config):
    """Options of shallow water: heights at 0, a round column of water, to heights at `final_time`."""

    resolution: int = Field(default=64, ge=8)
    """Cells of the stored fields in each axis; PDEBench stores 128."""
    refine: int = Field(default=2, ge=1)
    """Cells of the solver in each axis for each stored one, whose mean is stored."""
    length: float = Field(default=5.0, gt=0)
    """Side of the square."""
    gravity: float = Field(default=1.0, gt=0)
    """g."""
    inside: float = Field(default=2.0, gt=0)
    """Height of the column."""
    outside: float = Field(default=1.0, gt=0)
    """Height of the water around it."""
    smallest_radius: float = Field(default=0.3, gt=0)
    """Radii of columns are drawn evenly from this .."""
    largest_radius: float = Field(default=0.7, gt=0)
    """.. to this."""
    spread: float = Field(default=0.0, ge=0)
    """Centres are drawn evenly within this distance of the middle in each axis; 0 in PDEBench."""
    final_time: float = Field(default=1.0, gt=0)
    """T. The square is periodic: waves that reach its sides come back from the other ones."""
    steps: int | None = Field(default=None, ge=1)
    """Time steps; None: the fastest wave crosses 0.4 of the solver's cells in one."""
    time_tolerance: float | None = Field(default=TIME_TOLERANCE, gt=0)
    """Largest relative error by the time step, estimated on two samples; a data set with more is refused. None: any."""
    snapshots: int = Field(default=1, ge=1)
    """Stored times of the solution, equally spaced up to T."""

    @model_validator(mode="after")
    def _fits(self) -> "ShallowWaterConfig":
        if not self.smallest_radius <= self.largest_radius <= self.length / 2 - self.spread:
            raise ValueError(
                f"smallest_radius={self.smallest_radius}, largest_radius={self.largest_radius}, spread={self.spread} "
                f"do not fit length={self.length}; expected rising radii and columns inside of the square. Change them."
            )
        return require_times(self)

    def resolved(self) -> "ShallowWaterConfig":
        """Return the options with a number for each that was left open."""
        speed = fastest_wave(max(self.inside, self.outside), self.gravity)
        cells = self.resolution * self.refine
        steps = math.ceil(self.final_time * speed * cells / (COURANT * self.length))
        steps = math.ceil(steps / self.snapshots) * self.snapshots
        return self if self.steps else self.model_copy(update={"steps": steps})


def shallow_water_samples(config: ShallowWaterConfig, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """Draw columns and let them fall: heights (n, s, s) and (n, s, s), or (n, snapshots, s, s)."""
    initial = _columns(config, config.refine, generators)
    heights = _shallow_solution(config, initial)
    return _means(initial, config.refine), without_single_time(_means(heights, config.refine))


def shallow_water_errors(config: ShallowWaterConfig, generators: Sequence[Generator]) -> dict[str, float]:
    """Return "time_step", twice the change by twice as many steps (of first order at shocks; half as many would not be
    stable), and "half_grid", the change by cells twice as wide, which overstates the error of these.
    """
    initial, resolved = _columns(config, config.refine, generators), config.resolved()
    found = _shallow_solution(resolved, initial)[:, -1]
    assert resolved.steps is not None
    finer = _shallow_solution(resolved.model_copy(update={"steps": 2 * resolved.steps}), initial)[:, -1]
    errors = {"time_step": 2 * difference(found, finer)}
    if initial.shape[1] % 2 == 0:
        coarse = resolved.model_copy(
            update={"steps": math.ceil(resolved.steps / 2 / config.snapshots) * config.snapshots}
        )
        errors["half_grid"] = difference(_shallow_solution(coarse, _means(initial, 2))[:, -1], _means(found, 2))
    return errors


def _columns(config: ShallowWaterConfig, refine: int, generators: Sequence[Generator]) -> Tensor:
    size = config.resolution * refine
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size * config.length - config.length / 2
    fields = []
    for generator in generators:
        drawn = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        radius = config.smallest_radius + (config.largest_radius - config.smallest_radius) * drawn[0]
        x, y = ((2 * one - 1) * config.spread for one in drawn[1:])
        distance = ((centres[:, None] - x).square() + (centres - y).square()).sqrt()
        fields.append(torch.where(distance <= radius, config.inside, config.outside).double())
    return torch.stack(fields)


def _shallow_solution(config: ShallowWaterConfig, initial: Tensor) -> Tensor:
    steps = config.resolved().steps
    assert steps is not None
    return solve_shallow_water(
        initial,
        final_time=config.final_time,
        steps=steps,
        gravity=config.gravity,
        length=config.length,
        snapshots=config.snapshots,
    )[:, :, 0]


def _means(fields: Tensor, every: int) -> Tensor:
    """Return means over squares of so many cells a side of the last two axes."""
    rows, columns = fields.shape[-2] // every, fields.shape[-1] // every
    return fields.unflatten(-1, (columns, every)).unflatten(-3, (rows, every)).mean(dim=(-3, -1))
