"""Ranks and storages are decided within their budget."""

import copy

import pytest
import torch
from causal_models import causal_model
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.nn.low_rank_linear import PivotedLinear

SMALL = {"min_dim": 8}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.5, 0.9])
def test_the_model_is_never_larger_than_before(name, share):
    # Mutation: two factors at 10 % make this model larger, as the official script does.
    model = causal_model(name)
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    fw.apply(model, fw.WeLore(rank_reduction=share, **SMALL))
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()] if t.dtype != torch.float32 or t.ndim}
    kept = [m for m in model.modules() if isinstance(m, PivotedLinear)]
    after = sum(p.numel() * p.element_size() for p in model.parameters()) + sum(m.perm.nbytes for m in kept)
    assert after < before and tensors


@pytest.mark.parametrize("allocation", ["threshold", "energy", "uniform", None])
@pytest.mark.parametrize("key", ["param_ratio", "max_bytes"])
def test_budgets_in_parameters_and_bytes_are_kept(allocation, key):
    model = causal_model("llama")
    numel = sum(p.numel() for p in model.parameters())
    for share in (0.6, 0.8, 0.95):
        changed = copy.deepcopy(model)
        value = share if key == "param_ratio" else int(4 * numel * share)
        report = fw.apply(changed, fw.WeLore(**{key: value}, allocation=allocation, **SMALL))
        facts = report.section("Totals").facts
        found = facts["parameters kept"] if key == "param_ratio" else facts["bytes after"] / (4 * numel)
        # One rank more of the largest matrix would be 1 % of this model.
        assert share - (0.04 if allocation else 0.02) <= found <= share + 5e-5


def test_a_budget_that_cannot_be_reached_names_the_least():
    with pytest.raises(ConfigError, match="expected at least"):
        fw.apply(causal_model("llama"), fw.WeLore(param_ratio=0.05, **SMALL))


def test_full_rank_matrices_stay_bit_by_bit():
    model = causal_model("llama")
    before = copy.deepcopy(model.state_dict())
    fw.apply(model, fw.WeLore(rank_pattern={"model.layers.1.mlp.up_proj": 5}, **SMALL))
    after = model.state_dict()
    assert [n for n in before if n not in after] == ["model.layers.1.mlp.up_proj.weight"]
    assert all(torch.equal(after[n], before[n]) for n in before if n in after)
    assert model.model.layers[1].mlp.up_proj.rank == 5


def test_shared_weights_are_left_alone():
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64), "c": nn.Linear(64, 64)})
    model["b"].weight = model["a"].weight
    report = fw.apply(model, fw.WeLore())
    assert {row[0] for row in report.section("Left alone").rows} == {"a", "b"}
    assert isinstance(model["c"], PivotedLinear)
