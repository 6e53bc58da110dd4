"""What the problems draw and solve: fields as published, and steps that are small enough."""

import math

import pytest
from pde_fields import SMALL_PROBLEMS as SMALL

from featherweight.errors import NumericsError
from featherweight.pde.generation import sample_pairs
from featherweight.pde.metrics import relative_l2
from featherweight.pde.problem_options import BurgersConfig, DarcyConfig, NavierStokesConfig


def test_lognormal_coefficients_are_positive_and_not_two_valued():
    x = sample_pairs("darcy", 2, config=DarcyConfig(resolution=9, coefficient="lognormal")).x
    assert float(x.min()) > 0 and len(x.unique()) > 50
    assert sample_pairs("darcy", 2, config=SMALL["darcy"]).x.unique().tolist() == [3, 12]


def test_time_steps_follow_the_final_time_the_viscosity_and_the_grid():
    assert (NavierStokesConfig().resolved().steps, NavierStokesConfig().resolved().refine) == (200, 1)
    assert BurgersConfig().resolved().steps == 400
    assert NavierStokesConfig(final_time=20).resolved().steps == 4000
    assert NavierStokesConfig(resolution=256).resolved().steps == 256
    assert NavierStokesConfig(snapshots=3).resolved().steps == 201
    assert BurgersConfig(viscosity=1e-3, resolution=1024).resolved().steps == 1000
    refined = [NavierStokesConfig(viscosity=nu).resolved().refine for nu in (1e-3, 1e-4, 1e-5, 0.0)]
    assert refined == [1, 2, 4, 4]
    assert NavierStokesConfig(viscosity=1e-5, refine=1).resolved().refine == 1


@pytest.mark.slow
@pytest.mark.parametrize(("viscosity", "final_time"), [(1e-3, 50.0), (1e-4, 30.0), (1e-5, 20.0)])
def test_default_steps_are_right_at_the_published_times(viscosity, final_time):
    config = NavierStokesConfig(resolution=32, refine=2, viscosity=viscosity, final_time=final_time)
    own = sample_pairs("navier_stokes", 1, config=config)
    fine = config.resolved().override([f"steps={2 * config.resolved().steps}"])
    assert float(relative_l2(own.y, sample_pairs("navier_stokes", 1, config=fine).y).max()) < 1e-5


def test_too_few_steps_are_refused_with_the_error_they_make():
    with pytest.raises(NumericsError, match="steps=2 to final_time=1.0 give burgers a relative error"):
        sample_pairs("burgers", 2, config=BurgersConfig(resolution=16, steps=2))
    loose = BurgersConfig(resolution=16, steps=2, time_tolerance=None)
    assert sample_pairs("burgers", 2, config=loose).y.shape == (2, 16)


def test_darcy_statistics_are_those_of_the_literature():
    y = sample_pairs("darcy", 8, config=DarcyConfig(resolution=64)).y
    # Mean about 0.0055, largest about 0.014; 8 samples scatter by a tenth.
    assert float(y.mean()) == pytest.approx(0.0055, rel=0.15) and float(y.max()) == pytest.approx(0.015, rel=0.2)
    w = sample_pairs("navier_stokes", 8, config=NavierStokesConfig(steps=20)).x
    assert math.isclose(float(w.std()), 0.26, rel_tol=0.15)
