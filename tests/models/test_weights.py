"""Pretrained means pretrained: shapes, configurations, folders, and what a recipe says of their weights."""

import json

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.models import begins_pretrained, check_weights, load_model, load_tokenizer, save_model_folder

SMALL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture
def folder(tmp_path):
    save_model_folder(load_model(SMALL, seed=3), load_tokenizer("bytes"), tmp_path / "model")
    return str(tmp_path / "model")


def test_a_shape_is_refused_until_somebody_asks_for_random_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    for source in ("llama-3-8b", str(tmp_path / "config.json")):
        with pytest.raises(ConfigError, match="is a shape, of which there are no weights.*task.weights: random"):
            check_weights(source, None, where="task chat")
        with pytest.raises(ConfigError, match="is a shape"):
            check_weights(source, "pretrained", where="task chat")
        check_weights(source, "random", where="task chat")


def test_toys_configurations_and_folders_need_no_word(folder):
    for source in ("tiny", "byte-llama", SMALL, folder):
        check_weights(source, None, where="task chat")


def test_adapters_on_random_weights_are_refused(folder):
    for source, weights in (("llama-60m", "random"), (SMALL, None), (folder, "random")):
        with pytest.raises(ConfigError, match="methods=LoRA change little of a model.*are random"):
            check_weights(source, weights, adapters=["LoRA"], where="task chat")
    check_weights(folder, None, adapters=["LoRA"], where="task chat")
    check_weights("tiny", None, adapters=["LoRA"], where="task chat")  # a toy, to try things out


def test_a_shape_of_which_nothing_is_said_stands_for_the_pretrained_model(folder):
    answers = {("llama-3-8b", None): True, ("llama-3-8b", "random"): False, (folder, None): True, ("tiny", None): False}
    assert {key: begins_pretrained(*key) for key in answers} == answers
    assert not begins_pretrained(folder, "random")


def test_random_weights_of_a_folder_are_new_ones_of_its_shape(folder):
    own = load_model(folder).state_dict()
    new = load_model(folder, random_weights=True, seed=5).state_dict()
    again = load_model(folder, random_weights=True, seed=5).state_dict()
    assert new.keys() == own.keys() and all(new[name].shape == own[name].shape for name in own)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(new[name], own[name]) and torch.equal(new[name], again[name])
