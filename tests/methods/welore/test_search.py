"""A cut is found by what it costs, not by energies: kinds that matter stay, kinds that do not go."""

import math

import pytest
import torch
from causal_models import batch, causal_model

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.welore.search import find_cut


def measure(model):
    with torch.no_grad():
        return float(model(**batch(seed=3)).loss)


@pytest.fixture(scope="module")
def trained():
    model = causal_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(30):
        model(**batch(seed=3)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("method", ["plain", "whitened"])
def test_the_loss_stays_within_the_limit_and_the_model_as_it_was(trained, method):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    rows = [batch(seed=3)["input_ids"]] if method == "whitened" else None
    found = find_cut(trained, fw.WeLore(method=method, min_dim=8), measure, 0.1, rows)
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert found.loss_before == measure(trained)
    assert found.loss_after <= found.loss_before + 0.1
    assert found.options.rank_pattern and set(found.curves) >= {"mlp.up_proj", "self_attn.q_proj"}
    cut = causal_model("llama").eval()
    cut.load_state_dict(before)
    report = fw.apply(cut, found.options, rows)
    assert report.section("Totals").facts["bytes kept"] < 1
    assert measure(cut) == pytest.approx(found.loss_after, abs=1e-4)  # the same factors in other storages


def test_a_kind_without_effect_goes_first_whatever_its_spectrum(trained):
    model = causal_model("llama").eval()
    model.load_state_dict(trained.state_dict())
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:  # a flat spectrum whose output is multiplied by nothing
        layer.self_attn.v_proj.weight.data = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
        layer.self_attn.o_proj.weight.data.zero_()
    found = find_cut(model, fw.WeLore(min_dim=8, exclude_modules=["lm_head", "o_proj"]), measure, 0.02)
    ranks = {name: rank for name, rank in found.options.rank_pattern.items() if "v_proj" in name}
    assert sum(ranks.values()) == 16  # of 64: as many as are tried


def test_budgets_and_impossible_limits_are_refused(trained):
    with pytest.raises(ConfigError, match="rank_reduction=0.5 is a budget beside a wanted loss"):
        find_cut(trained, fw.WeLore(rank_reduction=0.5, min_dim=8), measure, 0.1)
    with pytest.raises(ConfigError, match="refit depends on the whole cut"):
        find_cut(trained, fw.WeLore(method="refit", min_dim=8), measure, 0.1)
    with pytest.raises(ConfigError, match="less than the smallest useful cut"):
        find_cut(trained, fw.WeLore(min_dim=8), lambda model: math.exp(measure(model) * 50), 1e-12)


def test_a_floor_of_energy_bounds_what_every_matrix_loses():
    model = causal_model("llama")
    report = fw.apply(model, fw.WeLore(rank_reduction=0.5, energy_floor=0.9, min_dim=8))
    table = report.section("Matrices")
    errors = [dict(zip(table.columns, row, strict=True))["relative error"] for row in table.rows]
    assert max(errors) ** 2 <= 0.1 + 1e-6 and max(errors) > 0
    assert report.section("Totals").facts["rank reduction"] < 0.5
