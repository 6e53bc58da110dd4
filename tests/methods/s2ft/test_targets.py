"""Amounts and patterns that fit no module are refused, with what would fit."""

import peft
import pytest
import torch
from causal_models import ARCHITECTURES, causal_model
from s2ft_models import indices_of, selecting
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.layer import s2ft_layers


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_cover_attention_outputs_and_last_feed_forward_matrices(architecture):
    model = selecting(architecture, num_channels=8)
    layers = s2ft_layers(model)
    config = model.base_model.model.config

    assert len(layers) == 2 * config.num_hidden_layers
    assert all(layer.s2ft_axis["default"] == "input" for layer in layers.values())
    heads = [name for name in layers if "attn" in name or "attention" in name]
    for name in heads:  # 8 channels are one head of these models
        start = layers[name].s2ft_indices["default"][0].item()
        assert start % 8 == 0 and layers[name].s2ft_indices["default"].tolist() == list(range(start, start + 8))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "t5"])
def test_r_equivalent_trains_what_lora_of_that_rank_does(kind):
    models = []
    for config in (
        fw.S2FTConfig(r_equivalent=2, multiple_of=1, unit="channel"),
        peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj", "mlp.c_proj", "attn.c_proj", "o", "wo"]),
    ):
        if kind == "t5":
            small = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61}
            base = AutoModel.from_config(AutoConfig.for_model("t5", **small))
        else:
            base = causal_model(kind)
        models.append(peft.get_peft_model(base, config).get_nb_trainable_parameters()[0])
    # A module's channels are rounded up: at most one row of 32 more each.
    assert models[1] <= models[0] < models[1] + len(s2ft_layers(selecting())) * 3 * 32


def test_amounts_round_up_to_multiples_and_down_to_heads():
    layers = s2ft_layers(selecting(num_channels=13))
    down, o = (next(layer for name, layer in layers.items() if name.endswith(end)) for end in ("down_proj", "o_proj"))
    assert len(down.s2ft_indices["default"]) == 16 and len(o.s2ft_indices["default"]) == 8
    pattern = selecting(channel_ratio=1.0, channel_pattern={r"0\.mlp\.down_proj": 3, "o_proj": 0.0}, multiple_of=1)
    sizes = {name: len(one) for name, one in indices_of(pattern).items()}
    # Nothing is trained in o_proj, so it is not even wrapped; everything in the other down_proj.
    assert sizes == {"model.layers.0.mlp.down_proj": 3, "model.layers.1.mlp.down_proj": 48}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 100}, "more than its 32"),
        ({"num_channels": 8, "target_modules": ["embed_tokens"]}, "expected linear layers"),
        ({"num_channels": 8, "target_modules": ["norm"]}, "expected linear layers"),
        ({"compat": "official"}, "compat='official'"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        selecting(**options)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_tied_heads_unknown_architectures_and_experts_are_refused():
    with pytest.raises(ConfigError, match="also the embedding's"):
        selecting("smollm", num_channels=8, target_modules=["lm_head"])
    assert "lm_head" not in str(indices_of(selecting("smollm", num_channels=8, target_modules="all-linear")))
    with pytest.raises(ConfigError, match="all-linear"):
        peft.get_peft_model(nn.Sequential(nn.Linear(4, 4)), fw.S2FTConfig(num_channels=2))
    plain = peft.get_peft_model(
        nn.Sequential(nn.Linear(4, 4)), fw.S2FTConfig(num_channels=2, multiple_of=1, target_modules=["0"])
    )
    assert len(s2ft_layers(plain)) == 1
    experts = AutoConfig.for_model(
        "mixtral",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
        num_local_experts=2,
    )
    mixtral = AutoModelForCausalLM.from_config(experts)
    with pytest.raises(ConfigError, match="stacks of experts"):
        peft.get_peft_model(mixtral, fw.S2FTConfig(num_channels=8))
    tuned = peft.get_peft_model(mixtral, fw.S2FTConfig(num_channels=8, target_modules=["o_proj"]))
    assert list(indices_of(tuned)) == ["model.layers.0.self_attn.o_proj"]
