"""Layers with one input are told by their names."""

import copy

import pytest
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.shared_input import layers_with_one_input, shared_inputs


def block(**widths):
    return nn.ModuleDict({name: nn.Linear(*width) for name, width in widths.items()})


def names(model):
    return [list(group) for group in layers_with_one_input(model)]


def test_groups_are_found_by_the_names_of_children():
    model = nn.ModuleDict(
        {
            "attention": block(q_proj=(8, 8), k_proj=(8, 4), v_proj=(8, 4), o_proj=(8, 8)),
            "mlp": block(gate_proj=(8, 16), up_proj=(8, 16), down_proj=(16, 8)),
            "bert": block(query=(8, 8), key=(8, 8), value=(8, 8)),
            "single": block(q_proj=(8, 8)),
        }
    )
    assert names(model) == [
        ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["bert.query", "bert.key", "bert.value"],
    ]


def test_a_layer_that_stands_at_several_places_is_in_one_group():
    layer = block(w1=(8, 16), w2=(16, 8), w3=(8, 16))
    model = nn.ModuleDict({"a": layer, "b": layer, "c": nn.ModuleDict({"w1": layer["w1"], "w3": nn.Linear(8, 16)})})
    assert names(model) == [["a.w1", "a.w3"]]


def test_a_user_can_add_a_row(monkeypatch):
    model = block(to_q=(8, 8), to_k=(8, 8))
    assert names(model) == []
    table = copy.deepcopy(shared_inputs)
    table.register("to_q, to_k", ("to_q", "to_k"))
    monkeypatch.setattr("featherweight.methods.shared_input.shared_inputs", table)
    assert names(model) == [["to_q", "to_k"]]


def test_the_report_of_the_method_names_who_may_share():
    model = nn.ModuleDict(
        {
            "a": block(q_proj=(8, 8), k_proj=(8, 4), v_proj=(8, 4)),
            "b": block(q_proj=(8, 8), k_proj=(6, 4), v_proj=(6, 4)),
            "c": block(gate_proj=(8, 16), up_proj=(8, 16)),
        }
    )
    report = fw.apply(model, fw.CoreGradient(share_basis=True, exclude_modules=["a.k_proj", "c.up_proj"]))
    rows = dict(report.section("Shared bases").rows)
    assert rows["a.q_proj, a.k_proj, a.v_proj"] == "may share a right basis; without a.k_proj"
    assert "in_features differ (8, 6, 6)" in rows["b.q_proj, b.k_proj, b.v_proj"]
    assert rows["c.gate_proj, c.up_proj"] == "each its own; without c.up_proj"
    fw.remove(model, fw.CoreGradient())
    assert [section.title for section in fw.apply(model, fw.CoreGradient()).sections] == ["Modules"]


def test_a_shared_basis_is_fitted_to_thin_products_only():
    with pytest.raises(ConfigError, match="refresh='full'"):
        fw.CoreGradient.parse({"share_basis": True, "refresh": "full"}, where="test")
