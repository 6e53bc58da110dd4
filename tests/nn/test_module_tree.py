"""The tree of modules of a model."""

import pytest
from torch import nn

from featherweight.nn.module_tree import replace_module, shared_parameters


def test_a_module_takes_the_place_of_another_at_any_depth():
    model = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"inner": nn.Sequential(nn.Linear(3, 3), nn.ReLU())}))
    first, deep = nn.Identity(), nn.Tanh()
    replace_module(model, "0", first)
    replace_module(model, "1.inner.1", deep)
    assert model[0] is first and model[1]["inner"][1] is deep and isinstance(model[1]["inner"][0], nn.Linear)
    with pytest.raises(AttributeError):
        replace_module(model, "1.outer.1", deep)


def test_a_parameter_is_shared_if_two_modules_hold_it_and_not_if_one_module_stands_twice():
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    assert shared_parameters(nn.Sequential(one, two)) == {id(one.weight)}
    assert shared_parameters(nn.Sequential(one, one)) == set()
