"""Layers that cannot be cut are found by a probe."""

import causal_models as models
import pytest
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.forward_patch import is_patched


def test_a_model_whose_layers_cannot_be_cut_is_refused_and_stays_as_it_was():
    from transformers import AutoConfig, AutoModelForCausalLM

    mixtral = AutoConfig.for_model(
        "mixtral", **models.LLAMA, num_local_experts=2, num_experts_per_tok=1, attn_implementation="sdpa"
    )
    for model, reason in (
        (AutoModelForCausalLM.from_config(mixtral), "router_logits"),
        (nn.Sequential(nn.Linear(4, 4)), "no decoder layers"),
    ):
        with pytest.raises(ConfigError, match=reason):
            fw.apply(model, fw.MsT(tokenwise=True))
        assert not any(map(is_patched, model.modules()))


def test_a_layer_that_mixes_tokens_is_refused():
    model = models.causal_model("llama")
    own = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda x: own(x) + x.cumsum(1)

    with pytest.raises(ConfigError, match="come out differently"):
        fw.apply(model, fw.MsT(tokenwise=True))

    assert [is_patched(module) for module in model.modules()].count(True) == 0
    assert model.training and model.model.layers[0].training


def test_an_attention_that_is_finished_in_another_way_is_refused():
    model = models.causal_model("llama")
    kind = type(model.model.layers[0].self_attn)

    class Doubled(kind):
        def forward(self, *args, **kwargs):
            output, weights = super().forward(*args, **kwargs)
            return output * 2, weights

    for layer in model.model.layers:
        layer.self_attn.__class__ = Doubled
    with pytest.raises(ConfigError, match="come out differently"):
        fw.apply(model, fw.MsT(tokenwise=True))
