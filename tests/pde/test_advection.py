"""Advection: fields come back as they were, moved by what was asked."""

import math

import pytest
import torch
from pde_fields import generators

from featherweight.errors import ConfigError, ShapeError
from featherweight.pde import AdvectionConfig, sample_pairs, solve_advection
from featherweight.pde.advection import waves_field


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_advection_is_the_wave_elsewhere_to_rounding(dimensions):
    points = torch.arange(16, dtype=torch.float64) / 16
    speed = [0.3, -1.7, 0.9][:dimensions]

    def wave(time: float) -> torch.Tensor:
        phase = torch.zeros((16,) * dimensions, dtype=torch.float64)
        for axis, (c, waves) in enumerate(zip(speed, (2, 3, 5), strict=False)):
            phase = phase + 2 * math.pi * waves * (points - c * time).view(
                [-1 if i == axis else 1 for i in range(dimensions)]
            )
        return torch.sin(phase)

    moved = solve_advection(wave(0.0)[None], speed=speed, final_time=1.4, snapshots=2)
    torch.testing.assert_close(moved[0, 0], wave(0.7), rtol=0, atol=1e-13)
    torch.testing.assert_close(moved[0, 1], wave(1.4), rtol=0, atol=1e-13)


def test_rough_fields_return_after_a_whole_turn_and_whole_cells_are_a_roll(generator):
    field = torch.randn(2, 15, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(solve_advection(field, speed=[1.0], final_time=3.0)[:, 0], field, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        solve_advection(field, speed=[1.0], final_time=2 / 15)[:, 0], field.roll(2, 1), rtol=0, atol=1e-13
    )


def test_waves_are_those_that_were_asked_for():
    spectrum = torch.fft.rfft(waves_field(32, 1, largest=5, count=3, generators=generators(4))).abs() / 16
    assert float(spectrum[:, 6:].max()) < 1e-12 and float(spectrum[:, 0].max()) < 1e-12
    assert bool((spectrum[:, 1:6].max(1).values > 0).all())


def test_samples_move_and_wrong_options_are_refused():
    pairs = sample_pairs(
        "advection", 2, config=AdvectionConfig(resolution=16, dimensions=2, largest_wavenumber=3, speed=[0.5, 0.25])
    )
    torch.testing.assert_close(pairs.y, pairs.x.roll(8, 2), rtol=0, atol=1e-5)  # 2 x 0.5 and 2 x 0.25 turns, float32
    with pytest.raises(ConfigError, match="one for each axis"):
        AdvectionConfig(dimensions=2, speed=[1.0])
    with pytest.raises(ConfigError, match="too short a wave"):
        AdvectionConfig(resolution=16)
    with pytest.raises(ShapeError, match="a number for each axis"):
        solve_advection(torch.zeros(1, 8, 8), speed=[1.0], final_time=1.0)
