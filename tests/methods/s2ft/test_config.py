"""Amounts of an S2FT configuration: whole numbers are whole, shares are shares."""

import json

import numpy as np
import peft
import pytest
from causal_models import causal_model

import featherweight as fw
from featherweight.errors import ConfigError


@pytest.mark.parametrize(
    "options",
    [
        {"num_channels": 2.5},
        {"num_channels": True},
        {"num_channels": "8"},
        {"r_equivalent": 4.0},
        {"r_equivalent": True},
        {"channel_ratio": True},
        {"channel_ratio": "0.5"},
        {"channel_ratio": float("nan")},
        {"multiple_of": 1.5},
        {"multiple_of": False},
        {"spectral_rank": 2.5},
        {"seed": 0.5},
        {"channel_pattern": {"o_proj": True}},
        {"channel_pattern": {"o_proj": "8"}},
        {"channel_pattern": {"o_proj": float("nan")}},
        {"channel_pattern": {"o_proj": -1}},
    ],
)
def test_amounts_of_another_kind_are_one_sentence(options):
    with pytest.raises(ConfigError, match=f"S2FTConfig: {next(iter(options))}.* is out of range; expected .*\\."):
        fw.S2FTConfig(**options)


def test_numbers_of_numpy_count_and_are_saved(tmp_path):
    config = fw.S2FTConfig(
        num_channels=np.int64(8),
        seed=np.int32(3),
        channel_pattern={"o_proj": np.float64(0.25), "down_proj": np.int64(16)},
    )
    assert type(config.num_channels) is int and type(config.channel_pattern["down_proj"]) is int
    peft.get_peft_model(causal_model("llama"), config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["num_channels"] == 8 and saved["channel_pattern"] == {"o_proj": 0.25, "down_proj": 16}


def test_without_an_amount_small_modules_are_trained_whole():
    # r_equivalent=16 would be 40 of 32 channels in o_proj: nobody asked for it, so it is bounded.
    model = peft.get_peft_model(causal_model("llama"), fw.S2FTConfig(target_modules=["o_proj"]))
    assert set(model.peft_config["default"].module_channels.values()) == {32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 8, "channel_ratio": 0.1}, "say twice"),
        ({"channel_ratio": 1.5}, "out of range"),
        ({"num_channels": 0}, "out of range"),
        ({"num_channels": 8, "select": "largst"}, "Did you mean 'largest'"),
        ({"num_channels": 8, "selection": "activations"}, "Did you mean 'activation'"),
        ({"num_channels": 8, "axis_pattern": {"o_proj": "row"}}, "'input' or 'output'"),
        ({"num_channels": 8, "channel_pattern": {"o_proj": 1.5}}, "channel_pattern"),
        ({"num_channels": 8, "update": "inplace", "s2ft_dropout": 0.1}, "expected 0"),
        ({"num_channels": 8, "s2ft_dropout": 1.0}, "out of range"),
        ({"num_channels": 8, "layers_pattern": "layers"}, "layers_to_transform"),
        ({"num_channels": 8, "target_modules": ".*o_proj", "layers_to_transform": [0]}, "list of names"),
    ],
)
def test_wrong_settings_are_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        fw.S2FTConfig(**options)
