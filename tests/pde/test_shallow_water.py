"""Shallow water: what is conserved, water at rest, Stoker's dam break, and waves of small height."""

import math

import pytest
import torch
from pde_fields import error

from featherweight.errors import ConfigError, NumericsError, ShapeError
from featherweight.pde import ShallowWaterConfig, sample_pairs, solve_shallow_water


def stoker(x: torch.Tensor, time: float, left: float, right: float) -> torch.Tensor:
    """Return the exact heights of a dam broken at x = 0, g = 1: a fan to the left, a shock to the right."""

    def excess(middle: float) -> float:
        u = 2 * (left**0.5 - middle**0.5)  # along the fan
        return u - (middle - right) * ((middle + right) / (2 * middle * right)) ** 0.5  # over the shock

    low, high = right, left
    for _ in range(80):
        centre = (low + high) / 2
        low, high = (centre, high) if excess(centre) > 0 else (low, centre)
    middle, u = low, 2 * (left**0.5 - low**0.5)
    shock = middle * u / (middle - right)
    fan = (2 * left**0.5 - x / time).square() / 9
    heights = torch.where(x < time * shock, middle, right).double()
    heights = torch.where(x < time * (u - middle**0.5), fan, heights)
    return torch.where(x < -time * left**0.5, left, heights)


def test_a_dam_breaks_as_stoker_says_with_the_first_order_of_a_shock():
    errors = []
    for size in (100, 200, 400):
        x = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 8 - 4
        first = torch.where(x.abs() < 2, 2.0, 1.0).double()  # a second dam at -2 makes it periodic
        found = solve_shallow_water(
            first[None, :, None].expand(1, size, 4), final_time=0.6, steps=size // 4, length=8.0, snapshots=1
        )[0, 0, 0]
        assert torch.equal(found, found[:, :1].expand(-1, 4))  # nothing happens along y
        exact = stoker(x - 2, 0.6, 2.0, 1.0)
        right = x > 0
        errors.append(float((found[right, 0] - exact[right]).abs().mean()))
    assert errors[2] < 4e-3 and all(1.6 < a / b < 2.6 for a, b in zip(errors, errors[1:], strict=False))


def test_small_waves_travel_at_the_root_of_depth_with_second_order():
    errors = []
    for size in (16, 32, 64):
        x = 2 * math.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size
        eps = 1e-6  # terms of second order in the height are below the errors of the scheme
        height = (1 + eps * torch.sin(x))[None, :, None].expand(1, size, 2)
        velocity = torch.stack([(eps * torch.sin(x))[:, None].expand(size, 2), torch.zeros(size, 2)])[None]
        found = solve_shallow_water(height, velocity=velocity, final_time=0.5, steps=4 * size)[0, 0, 0, :, 0]
        errors.append(error(found - 1, eps * torch.sin(x - math.pi)))
    assert errors[2] < 0.01 and errors[0] / errors[2] > 8  # limiters cut the crests, else it were 16


def test_volume_momentum_and_symmetry_are_kept_and_still_water_stays_still():
    config = ShallowWaterConfig(resolution=16, refine=1)
    pairs = sample_pairs("shallow_water", 2, config=config)
    torch.testing.assert_close(pairs.y.mean((1, 2)), pairs.x.mean((1, 2)), rtol=1e-6, atol=0)  # stored as float32
    height = pairs.x.double()
    state = solve_shallow_water(height, final_time=1.0, steps=40, length=5.0, snapshots=2)
    torch.testing.assert_close(state[:, 1, 0].mean((1, 2)), height.mean((1, 2)), rtol=1e-14, atol=0)
    assert float(state[:, :, 1:].sum((3, 4)).abs().max()) < 1e-11
    torch.testing.assert_close(state[:, :, 0], state[:, :, 0].mT, rtol=1e-13, atol=0)
    torch.testing.assert_close(state[:, :, 0], state[:, :, 0].flip(2), rtol=1e-13, atol=0)
    rest = solve_shallow_water(torch.full((1, 8, 8), 1.3), final_time=5.0, steps=50)
    assert torch.equal(rest[:, :, 0], torch.full((1, 1, 8, 8), 1.3).double()) and not rest[:, :, 1:].any()


def test_the_default_step_is_checked_and_what_cannot_be_is_refused():
    from featherweight.pde.generation import estimated_errors

    config = ShallowWaterConfig(resolution=16, refine=1, spread=0.5).resolved()
    errors = estimated_errors("shallow_water", config, seed=0, split="train", n=2)
    assert 0 < errors["time_step"] < 0.01 and 0 < errors["half_grid"] < 0.1
    with pytest.raises(NumericsError, match="Double steps"):
        sample_pairs("shallow_water", 1, config=config.override(["steps=1", "final_time=9", "time_tolerance=null"]))
    with pytest.raises(ConfigError, match="do not fit length"):
        ShallowWaterConfig(length=1.0)
    with pytest.raises(ShapeError, match="divides steps"):
        solve_shallow_water(torch.ones(1, 8, 8), final_time=1.0, steps=3, snapshots=2)
