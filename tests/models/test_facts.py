import os

import pytest
import torch
from tiny_models import SMALL_LLAMA
from transformers import GPT2Config, GPT2LMHeadModel

from featherweight.models import (
    ModelFacts,
    load_model,
    load_tokenizer,
    model_facts,
    save_model_folder,
)
from featherweight.models.tokenizer import byte_tokenizer


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("alias", ["tiny", "byte-llama"])
def test_byte_llama_has_an_untied_head_and_no_row_that_cannot_learn(alias):
    model = load_model(alias)
    # Embedding and head; four layers of q, k, v, o, of gate, up, down, and of two norms; the last norm.
    by_hand = 2 * 257 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 352 + 2 * 128) + 128
    assert parameter_count(model) == model_facts(alias).parameters == by_hand
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert model.get_input_embeddings().num_embeddings == 257
    # torch keeps the gradient of a padding row at zero; the end of text must not be one.
    assert model.get_input_embeddings().padding_idx is None
    assert model.config.eos_token_id == load_tokenizer(alias).eos_token_id == 256
    assert model.training


def test_model_folder_loads_in_the_asked_dtype_and_its_facts_need_no_weights(tmp_path):
    save_model_folder(load_model(SMALL_LLAMA), byte_tokenizer(), tmp_path / "small")
    source = str(tmp_path / "small")
    assert {parameter.dtype for parameter in load_model(source).parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load_model(source, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    os.remove(tmp_path / "small" / "model.safetensors")
    facts = model_facts(source)
    assert (facts.model_type, facts.vocab_size, facts.max_position_embeddings) == ("llama", 257, 64)


def test_tied_head_counts_once(tmp_path):
    tied = {**SMALL_LLAMA, "tie_word_embeddings": True}
    model = load_model(tied)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model_facts(tied).parameters == parameter_count(model) == parameter_count(load_model(SMALL_LLAMA)) - 257 * 16


def test_context_of_gpt2_is_found_under_its_own_name():
    assert model_facts({"model_type": "gpt2", "n_positions": 32, "n_embd": 8, "n_head": 1, "n_layer": 1}) == (
        ModelFacts("gpt2", "gpt2", facts_of_gpt2(), 257, 32)
    )


def facts_of_gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=32, n_embd=8, n_head=1, n_layer=1)).num_parameters()
