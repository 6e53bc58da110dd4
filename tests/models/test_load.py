import pytest
import torch
from tiny_models import SMALL_LLAMA, same_weights
from transformers import BertConfig, BertModel

from featherweight.errors import ConfigError
from featherweight.models import (
    load_model,
    load_tokenizer,
    save_model_folder,
)
from featherweight.models.tokenizer import byte_tokenizer


def test_random_weights_follow_from_the_seed_alone_and_leave_the_global_state():
    torch.manual_seed(1)
    first = load_model(SMALL_LLAMA, seed=7)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert same_weights(first, load_model(SMALL_LLAMA, seed=7))
    assert not same_weights(first, load_model(SMALL_LLAMA, seed=8))


def test_loading_prints_nothing(tmp_path, capfd):
    save_model_folder(load_model(SMALL_LLAMA), byte_tokenizer(), tmp_path / "small")
    load_model(str(tmp_path / "small"))
    load_tokenizer(str(tmp_path / "small"))
    assert capfd.readouterr() == ("", "")


def test_model_without_a_language_head_is_refused_instead_of_getting_a_random_one(tmp_path):
    settings = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    settings.is_decoder = True
    BertModel(settings).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"lacks \d+ weights of a causal language model, 'cls.predictions"):
        load_model(str(tmp_path / "bert"))


def test_damaged_weights_are_one_sentence(tmp_path):
    save_model_folder(load_model(SMALL_LLAMA), byte_tokenizer(), tmp_path / "small")
    weights = tmp_path / "small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        load_model(str(tmp_path / "small"))
    assert "\n" not in str(caught.value)
