"""Further problems, of PDEBench's list: advection, reaction and diffusion in one to three axes, shallow water in two.

Options and samples, as `problems` has them.
Source: PDEBench, arXiv 2210.07182, appendix D.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from featherweight.pde.advection import solve_advection, waves_field
from featherweight.pde.random_field import periodic_field
from featherweight.pde.reaction_diffusion import solve_reaction_diffusion
from featherweight.pde.shallow_water import solve_shallow_water
from featherweight.pde.time_errors import (
    difference,
    timed_errors,
    without_single_time,
)
from featherweight.pde.wave_options import AdvectionConfig, ReactionDiffusionConfig, ShallowWaterConfig


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
