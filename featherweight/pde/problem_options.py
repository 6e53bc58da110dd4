"""Options of the problems that data sets are generated for, with the parameters of the literature as defaults.

Without torch, so that a recipe is judged at once; `problems.py` has the functions that solve them.
Source: Li et al., arXiv 2010.08895, appendix A.3.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from featherweight.config import Config
from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.pde.options import PdeConfig
from featherweight.pde.time_options import TIME_TOLERANCE, require_times, steps_for
from featherweight.pde.wave_options import AdvectionConfig, ReactionDiffusionConfig, ShallowWaterConfig


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


PROBLEM_OPTIONS: dict[str, tuple[type[Config], int]] = {
    "darcy": (DarcyConfig, 2),
    "burgers": (BurgersConfig, 1),
    "navier_stokes": (NavierStokesConfig, 2),
    "advection": (AdvectionConfig, 1),
    "reaction_diffusion": (ReactionDiffusionConfig, 1),
    "shallow_water": (ShallowWaterConfig, 2),
}
"""Options and axes of the fields of every problem (unless its option `dimensions` says otherwise), by the name that
commands and files use."""


def require_problem(name: str) -> None:
    """Refuse a problem that nobody knows.

    Raises:
        ConfigError: names the nearest one.
    """
    if name not in PROBLEM_OPTIONS:
        raise ConfigError(
            f"pde: problem='{name}' is unknown; expected one of {', '.join(PROBLEM_OPTIONS)}. "
            f"{did_you_mean(name, PROBLEM_OPTIONS, otherwise=LISTED)}"
        )


def problem_options(config: PdeConfig) -> Config:
    """Return the options of the problem whose samples a task generates.

    Raises:
        ConfigError: if one is not allowed, or there is not one of `n_modes` for each axis of the fields.
    """
    kind, axes = PROBLEM_OPTIONS[config.data]
    options = dict(config.problem_options)
    if config.resolution is not None:
        options["resolution"] = config.resolution
    chosen = kind.parse(options, where="pde task problem_options")
    axes = int(getattr(chosen, "dimensions", axes))
    if len(config.n_modes) != axes:
        raise ConfigError(
            f"pde task: n_modes={config.n_modes} do not fit {config.data}, whose fields have {axes} axes; expected as "
            "many. Give as many n_modes as the fields have axes."
        )
    return chosen
