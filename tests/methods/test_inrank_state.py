import copy

import pytest
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.inrank_state import growing_layer, growth_state, has_growing_ranks, mean_ranks


def applied():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    method = fw.InRank(buffer=4)
    fw.apply(model, method)
    return model, method


def test_a_model_knows_its_ranks_until_the_method_is_removed():
    model, method = applied()
    assert growth_state(model).ranks == {"0": 2, "1": 2}
    assert growth_state(copy.deepcopy(model)) == growth_state(model)
    assert growth_state(copy.deepcopy(model)) is not growth_state(model)
    fw.remove(model, method)
    with pytest.raises(ConfigError, match="no growing layers"):
        growth_state(model)


def test_ranks_may_grow_until_they_are_frozen():
    model, method = applied()
    assert has_growing_ranks(model) and not has_growing_ranks(nn.Linear(2, 2))
    method.freeze(model)
    assert not has_growing_ranks(model)


def test_a_layer_whose_place_was_taken_is_named():
    model, _ = applied()
    assert growing_layer(model, "1") is model[1]
    model[1] = nn.Linear(32, 32)
    with pytest.raises(ConfigError, match="'1' is a Linear now"):
        growing_layer(model, "1")


def test_mean_ranks_are_taken_over_the_layers_of_a_step():
    history = [{"step": 1, "rank": 2}, {"step": 1, "rank": 4}, {"step": 2, "rank": 5}]
    assert mean_ranks(history) == {1: 3.0, 2: 5.0}
