"""Choosing channels by data."""

import warnings

import peft
import pytest
import torch
from causal_models import batch, causal_model
from s2ft_models import indices_of, selecting

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.calibration import calibrate
from featherweight.methods.s2ft.model import prepared_targets


def test_gradient_scores_are_norms_of_the_weight_gradient_and_leave_no_trace():
    model = causal_model("llama").train()
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()}
    config = fw.S2FTConfig(num_channels=8, selection="gradient")
    targets = prepared_targets(model, config)
    data = [batch(seed=0), batch(seed=1)]
    state = torch.random.get_rng_state()

    statistics = calibrate(model, data, targets, gradients=True)

    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert not any(module._forward_hooks for module in model.modules())
    expected = {name: 0 for name in targets}
    for inputs in data:
        model.zero_grad()
        model.eval()(**inputs, use_cache=False).loss.backward()
        for name, target in targets.items():
            gradient = target.module.weight.grad.t().reshape(-1, target.unit, target.other)
            expected[name] = expected[name] + gradient.flatten(1).norm(dim=1) / 2
    for name, norms in expected.items():
        torch.testing.assert_close(statistics[name].gradient_norm, norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("selection", ["activation", "product", "gradient", "perturbation"])
def test_select_makes_a_configuration_that_names_its_channels(selection):
    model = causal_model("llama")
    config = fw.s2ft.select(model, [batch()], num_channels=8, selection=selection, select="smallest")
    chosen = {name: one.tolist() for name, one in config.selection.items()}

    tuned = peft.get_peft_model(model, config)

    assert indices_of(tuned) == chosen and len(chosen) == 4
    with pytest.raises(ConfigError, match="Call config = fw.s2ft.select"):
        selecting(num_channels=8, selection=selection)


@pytest.mark.parametrize(("select", "is_warned"), [("largest", True), ("smallest", False)])
def test_a_channel_of_massive_activation_is_warned_of_where_it_is_chosen(select, is_warned):
    # Real models have such channels: 537 times the median in down_proj of SmolLM2-135M's layer 11.
    model = causal_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5] *= 1000
    options = {"num_channels": 8, "selection": "activation", "select": select}

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        config = fw.s2ft.select(model, [batch()], **options)

    assert (5 in config.selection["model.layers.1.mlp.down_proj"].tolist()) == is_warned
    told = [str(one.message) for one in seen if "as active as the median" in str(one.message)]
    assert len(told) == is_warned and all("layers.1.mlp.down_proj" in one for one in told)


def test_select_cleans_up_after_an_error():
    model = causal_model("llama").train()
    with pytest.raises(IndexError):
        fw.s2ft.select(model, [{"input_ids": torch.tensor([[10**6]])}], num_channels=8, selection="gradient")
    assert not any(module._forward_hooks for module in model.modules()) and model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ConfigError, match="reaches tokens=0"):
        fw.s2ft.select(model, [], num_channels=8, selection="activation")
