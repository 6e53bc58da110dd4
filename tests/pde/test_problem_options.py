import pytest

from featherweight.errors import ConfigError
from featherweight.pde.options import PdeConfig
from featherweight.pde.problem_options import PROBLEM_OPTIONS, problem_options, require_problem
from featherweight.pde.problems import PROBLEMS


def test_every_problem_has_the_options_that_are_known_without_torch():
    assert {name: (one.config, one.dimensions) for name, one in PROBLEMS.items()} == PROBLEM_OPTIONS


def test_axes_and_options_are_judged_together():
    assert problem_options(PdeConfig(resolution=16)).resolution == 16
    three = PdeConfig(data="advection", n_modes=[4, 4, 4], problem_options={"dimensions": 3})
    assert problem_options(three).dimensions == 3
    with pytest.raises(ConfigError, match="do not fit advection, whose fields have 1 axes"):
        problem_options(PdeConfig(data="advection"))
    with pytest.raises(ConfigError, match="Did you mean 'burgers'"):
        require_problem("burger")
