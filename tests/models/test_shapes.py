"""Shapes of well-known decoders: their numbers of parameters are those that were published."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from featherweight.errors import ConfigError
from featherweight.models import load_model, load_tokenizer, model_facts, save_model_folder
from featherweight.models.place import ALIASES
from featherweight.models.shapes import SHAPES
from featherweight.models.tokenizer import byte_tokenizer

# Elements in the safetensors files of the hub, a tied head counted once; the first five: the exact counts of the
# sizes that arXiv 2403.03507 rounds to 60M, 130M, 350M, 1B and 7B.
PARAMETERS = {
    "llama-60m": 58_073_600,
    "llama-130m": 134_105_856,
    "llama-350m": 367_969_280,
    "llama-1b": 1_339_082_752,
    "llama-7b": 6_738_415_616,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "mistral-7b": 7_241_732_096,
    "gemma-2-2b": 2_614_341_888,
    "phi-3-mini": 3_821_079_552,
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
}
HEAD_DIM = {"qwen3": {128}, "gemma2": {256}, "phi3": {96}}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_has_the_published_number_of_parameters(name):
    facts = model_facts(name)
    assert facts.parameters == PARAMETERS[name]
    assert (facts.name, facts.model_type) == (name, SHAPES[name]["model_type"])
    assert facts.vocab_size == SHAPES[name]["vocab_size"]


@pytest.mark.parametrize("name", SHAPES)
def test_heads_are_as_wide_as_published_and_their_groups_even(name):
    # The number of parameters does not tell the number of query heads.
    config = AutoConfig.for_model(**SHAPES[name])
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert config.num_attention_heads % groups == 0
    assert width in HEAD_DIM.get(config.model_type, {64, 128})


def test_rotary_base_and_its_scaling_reach_the_configuration():
    config = AutoConfig.for_model(**SHAPES["llama-3.2-1b"])
    assert config.rope_parameters["rope_theta"] == 5e5
    assert (config.rope_parameters["rope_type"], config.rope_parameters["factor"]) == ("llama3", 32.0)
    assert AutoConfig.for_model(**SHAPES["smollm2-1.7b"]).rope_parameters["rope_theta"] == 1.3e5


def test_shape_is_a_model_with_random_weights_and_the_byte_tokenizer():
    model = load_model("llama-60m", seed=3)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS["llama-60m"]
    again = load_model(SHAPES["llama-60m"], seed=3)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
    tokenizer = load_tokenizer("llama-60m")
    assert len(tokenizer) == len(byte_tokenizer())
    with torch.no_grad():
        assert model(tokenizer("né", return_tensors="pt")["input_ids"]).logits.shape == (1, 3, 32000)


def test_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model_folder(load_model("tiny"), byte_tokenizer(), tmp_path / "llama-2-7b")
    assert model_facts("llama-2-7b").parameters == model_facts("tiny").parameters


@pytest.mark.parametrize("wrong", ["llama-3-8", "Llama-3-8B", "./llama3-8b.json"])
def test_misspelt_name_gets_the_nearest_shape(wrong):
    with pytest.raises(ConfigError, match=r"Did you mean 'llama-3-8b'\?"):
        load_model(wrong)


def test_every_shape_stands_on_the_page_of_recipes():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    assert set(SHAPES) <= set(re.findall(r"`([\w.-]+)`[,.( ]", page))
    assert not set(SHAPES) & set(ALIASES)
