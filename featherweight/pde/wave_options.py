"""Options of the problems of PDEBench's list: advection, reaction and diffusion, shallow water. Without torch.

Source: PDEBench, arXiv 2210.07182, appendix D.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from featherweight.config import Config
from featherweight.pde.time_options import TIME_TOLERANCE, require_times, steps_for


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
        from featherweight.pde.shallow_water import COURANT, fastest_wave

        speed = fastest_wave(max(self.inside, self.outside), self.gravity)
        cells = self.resolution * self.refine
        steps = math.ceil(self.final_time * speed * cells / (COURANT * self.length))
        steps = math.ceil(steps / self.snapshots) * self.snapshots
        return self if self.steps else self.model_copy(update={"steps": steps})
