"""Ranks, phase and history of a model."""

import copy
import pickle

import pytest
import torch
from causal_models import causal_model, logits
from inrank_runs import FAST, train
from torch import nn

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.inrank import (
    GrowthState,
    InRank,
    growing_layer,
    growth_state,
    has_growing_ranks,
    mean_ranks,
)
from featherweight.methods.low_rank_model import low_rank_modules


def test_evaluation_changes_nothing():
    model = causal_model("llama")
    method = InRank(**FAST)
    fw.apply(model, method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    train(model, method, optimizer, 3)
    state = copy.deepcopy(growth_state(model))
    weights = copy.deepcopy(model.state_dict())
    model.eval()
    for _ in range(50):
        logits(model)
    model.train()
    assert growth_state(model) == state
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_checkpoint_in_the_middle_of_growth_goes_on_bit_for_bit():
    method = InRank(**FAST, patience=3, freeze_step=15)
    torch.manual_seed(0)

    def start():
        model = causal_model("llama")
        fw.apply(model, method)
        return model, torch.optim.AdamW(model.parameters(), lr=2e-2)

    whole, optimizer = start()
    train(whole, method, optimizer, 6)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), method.state_dict(whole)))
    grown = {n: m.rank for n, m in low_rank_modules(whole).items()}
    expected = train(whole, method, optimizer, 20, start=6)

    model, optimizer = start()
    assert {n: m.rank for n, m in low_rank_modules(model).items()} != grown
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    method.load_state_dict(model, saved[2])
    assert {n: m.rank for n, m in low_rank_modules(model).items()} == grown

    assert train(model, method, optimizer, 20, start=6) == expected
    assert growth_state(model) == growth_state(whole) and growth_state(model).is_frozen
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    other = causal_model("llama")
    fw.apply(other, InRank(**FAST, target_modules=["up_proj"]))
    with pytest.raises(CheckpointError, match="down_proj"):
        method.load_state_dict(other, saved[2])


def test_a_growing_layer_that_another_method_wrapped_is_named():
    model = causal_model("llama")
    method = InRank(**FAST)
    fw.apply(model, method)
    model.model.layers[0].mlp.up_proj = nn.Sequential(model.model.layers[0].mlp.up_proj)
    with pytest.raises(ConfigError, match=r"'model\.layers\.0\.mlp\.up_proj' is a Sequential now"):
        method.freeze(model)


def test_states_pickled_under_the_address_of_the_package_are_read():
    # As written while the package was one file.
    assert pickle.loads(b"cfeatherweight.methods.inrank\nGrowthState\n.") is GrowthState
    assert pickle.loads(b"cfeatherweight.methods.inrank\nInRank\n.") is fw.InRank


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
