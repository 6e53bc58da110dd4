"""Rows longer than a model's configuration says: positions are stretched as transformers has it, and stay so."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from featherweight.errors import ConfigError
from featherweight.models.positions import stretch_positions

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=32, pad_token_id=0, **options)).eval()


@pytest.mark.parametrize("scaling", ["none", "linear", "yarn"])
def test_a_stretched_model_is_the_one_that_transformers_loads_from_its_folder(scaling, tmp_path):
    model, plain = llama(), llama()
    stretch_positions(model, 128, scaling, where="test")
    assert model.config.max_position_embeddings == 128
    tokens = torch.randint(64, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, before = model(tokens).logits, plain(tokens).logits
    assert torch.equal(found, before) == (scaling == "none")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, found)


def test_linear_scaling_divides_positions():
    model, plain = llama(), llama()
    stretch_positions(model, 128, "linear", where="test")
    tokens = torch.randint(64, (1, 20), generator=torch.Generator().manual_seed(1))
    quarters = torch.arange(20)[None] / 4
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, plain(tokens, position_ids=quarters).logits)


def test_what_cannot_be_stretched_says_so_and_what_is_long_enough_stays():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(ConfigError, match="learned vector for each"):
        stretch_positions(gpt2, 64, "none", where="test")
    model = llama()
    stretch_positions(model, 16, "yarn", where="test")
    assert model.config.max_position_embeddings == 32
    stretch_positions(model, 64, "linear", where="test")
    with pytest.raises(ConfigError, match="on top of rope_type=linear"):
        stretch_positions(model, 128, "yarn", where="test")
