"""Which parts a layer has, told by their names."""

import causal_models as models
import pytest
import torch

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.layer_structure import AttentionStructure, attention_structures, find_layer

# With 3 rows, chunks of 2 positions of 19.
METHOD = {"tokenwise": True, "chunk_size": 8, "head_chunk_size": 5}


SMALL = {**models.LLAMA, "head_dim": 8, "pad_token_id": 0}


OTHERS = {
    **dict.fromkeys(["gemma", "gemma3_text", "glm", "olmo", "stablelm", "nemotron", "smollm3", "exaone4"], {}),
    "opt": {"dropout": 0.0, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_bigcode": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
}


@pytest.mark.parametrize("name", OTHERS)
def test_layers_that_nobody_thought_of_are_cut_as_well(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SMALL, **OTHERS[name])).train()
    inputs = models.batch()
    expected = models.loss_and_gradients(model, inputs)

    fw.apply(model, fw.MsT(**METHOD))

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)


def test_a_user_can_name_the_output_of_another_attention():
    model = models.causal_model("llama")

    class Renamed(type(model.model.layers[0].self_attn)):
        """Keeps its output projection under another name."""

    for layer in model.model.layers:
        attention = layer.self_attn
        attention.final = attention._modules.pop("o_proj")
        attention.__class__ = Renamed
    with pytest.raises(ConfigError, match="has 0 attention modules"):
        fw.apply(model, fw.MsT(tokenwise=True))
    attention_structures.register("final", AttentionStructure("final"))

    found = find_layer(model.model.layers[0])

    assert (found.attention, found.rule.output, found.feed_forward) == ("self_attn", "final", ("mlp",))
    names = {id(parameter): name for name, parameter in model.model.layers[0].named_parameters()}
    first = [names[id(parameter)] for parameter in found.parameters(model.model.layers[0], before=True)]
    assert [name for name in first if "norm" not in name] == [f"self_attn.{one}_proj.weight" for one in "qkv"]
