"""Amounts and patterns that fit no module are refused, with what would fit."""

import peft
import pytest
import torch
from causal_models import causal_model

import featherweight as fw
from featherweight.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_channels": 8, "channel_pattern": {"dwn_proj": 16}},
            r"channel_pattern\['dwn_proj'\]=16 matches no module",
        ),
        ({"num_channels": 8, "channel_pattern": {"dwn_proj": 16}}, "Did you mean 'down_proj'"),
        ({"num_channels": 8, "channel_pattern": {"up_proj": 16}}, "matches no module that is trained"),
        (
            {"num_channels": 8, "axis_pattern": {"dwn_proj": "output"}},
            r"axis_pattern\['dwn_proj'\]='output' matches no",
        ),
        ({"r_equivalent": 17}, r"asks for more parameters than '.*o_proj' has, 32 x 32; expected at most 16"),
        ({"r_equivalent": 10_000}, "expected at most"),
    ],
)
def test_what_fits_no_module_is_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        peft.get_peft_model(causal_model("llama"), fw.S2FTConfig(**options))


def test_the_largest_equivalent_rank_and_patterns_of_every_form_fit():
    model = peft.get_peft_model(
        causal_model("llama"),
        fw.S2FTConfig(
            r_equivalent=16, channel_pattern={r"layers\.0\.mlp\.down_proj": 8}, axis_pattern={"up_proj": "input"}
        ),
    )
    channels = model.peft_config["default"].module_channels
    assert channels["model.layers.0.self_attn.o_proj"] == 32
    assert channels["model.layers.0.mlp.down_proj"] == 8


@pytest.mark.parametrize("indices", [[2.5], [True, False], [1, 1], [99]])
def test_explicit_channels_are_different_whole_numbers_of_the_module(indices):
    selection = {"model.layers.0.mlp.down_proj": indices}
    with pytest.raises(ConfigError, match=r"selection of 'model\.layers\.0\.mlp\.down_proj' holds"):
        peft.get_peft_model(causal_model("llama"), fw.S2FTConfig(num_channels=8, selection=selection))


@pytest.mark.parametrize("method", [fw.Int8(), fw.WeLore(rank_reduction=0.5, min_dim=16)])
def test_weights_that_are_no_numbers_in_memory_are_not_permuted(method):
    model = causal_model("llama").eval()
    fw.apply(model, method)
    with pytest.raises(ConfigError, match="is no plain floating-point weight"):
        fw.s2ft.permute(model, {"model.layers.0.mlp.down_proj": torch.tensor([1, 5])})
