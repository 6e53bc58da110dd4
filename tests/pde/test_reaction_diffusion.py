"""Reaction and diffusion against exact solutions, in double precision."""

import math

import pytest
import torch
from pde_fields import error

from featherweight.errors import NumericsError, ShapeError
from featherweight.pde import solve_reaction_diffusion


def travelling(size: int, viscosity: float, time: float) -> torch.Tensor:
    """Return the front of Ablowitz and Zeppetella, and its mirror image: 1 near x = 0, 0 near x = 1 / 2."""
    x = (torch.arange(size, dtype=torch.float64) / size - 0.5).abs()
    z = (0.25 - x) / viscosity**0.5 - 5 / 6**0.5 * time  # how far ahead of the front
    return (1 + torch.exp(z / 6**0.5)) ** -2


def test_the_exact_front_travels_with_second_order():
    nu = 2.5e-5  # the two fronts do not feel each other: exp(-20)
    errors = [
        error(
            solve_reaction_diffusion(
                travelling(512, nu, 0.0)[None], viscosity=nu, reaction=1.0, final_time=2.0, steps=steps
            )[0, 0],
            travelling(512, nu, 2.0),
        )
        for steps in (10, 20, 40)
    ]
    assert [a / b for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([4, 4], rel=0.05)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_reaction_alone_is_logistic_and_diffusion_alone_is_heat(dimensions):
    shape = (1, *(12,) * dimensions)
    grids = torch.meshgrid(*[torch.arange(12, dtype=torch.float64) / 12] * dimensions, indexing="ij")
    wave = torch.cos(2 * math.pi * sum(grids))
    initial = 0.4 + 0.2 * wave[None]
    logistic = solve_reaction_diffusion(initial, viscosity=0.0, reaction=3.0, final_time=1.0, steps=3)[:, 0]
    growth = math.exp(3.0)
    torch.testing.assert_close(logistic, initial * growth / (1 + initial * (growth - 1)), rtol=1e-12, atol=0)
    heat = solve_reaction_diffusion(initial, viscosity=0.01, reaction=0.0, final_time=1.0, steps=4, snapshots=2)
    assert heat.shape == (1, 2, *shape[1:])
    decay = math.exp(-0.01 * dimensions * 4 * math.pi**2)
    torch.testing.assert_close(heat[0, 1], 0.4 + 0.2 * decay * wave, rtol=1e-12, atol=0)


def test_wrong_shapes_and_values_that_run_away_are_refused():
    with pytest.raises(ShapeError, match="divides steps"):
        solve_reaction_diffusion(torch.zeros(1, 8), viscosity=0.1, reaction=1.0, final_time=1, steps=5, snapshots=2)
    with pytest.raises(NumericsError, match="initial values in"):
        solve_reaction_diffusion(torch.full((1, 8), -1.0), viscosity=0.0, reaction=math.log(2), final_time=1, steps=1)
