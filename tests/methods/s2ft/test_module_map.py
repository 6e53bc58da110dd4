"""Which modules each family trains by default."""

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModel

import featherweight as fw
from featherweight.methods.s2ft.layer import s2ft_layers


@pytest.mark.parametrize("kind", ["opt", "bloom", "falcon", "bert", "vit", "t5"])
def test_defaults_of_other_families(kind):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    options = {
        "opt": {**small, "ffn_dim": 48, "vocab_size": 61, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61},
        "falcon": {**small, "vocab_size": 61, "ffn_hidden_size": 48},
        "bert": {**small, "vocab_size": 61},
        "vit": {**small, "image_size": 32, "patch_size": 8},
        "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61},
    }[kind]
    model = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
    count = 10 if kind == "t5" else 4  # T5: encoder 2 x 2, decoder 2 x 3
    inputs = {"input_ids": torch.arange(12).view(2, 6)}
    if kind == "vit":
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32)}
    elif kind == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
    tuned = peft.get_peft_model(model, fw.S2FTConfig(num_channels=8))

    assert len(s2ft_layers(tuned)) == count
    found = tuned.eval()(**inputs).last_hidden_state
    torch.testing.assert_close(found, plain)
    found.sum().backward()
    assert all(layer.s2ft_delta["default"].grad is not None for layer in s2ft_layers(tuned).values())
