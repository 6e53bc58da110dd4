"""A model's layers apart from what stands around them."""

import copy

import pytest
import torch
from tiny_models import prompt, tiny_model
from torch import nn

from featherweight.errors import ConfigError
from featherweight.nn.prefix_store import KeyValueStore
from featherweight.training.separate_layers import SeparateLayers, Stream


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral"])
def test_inputs_layers_and_tail_together_are_the_model(name):
    model, ids = tiny_model(name), prompt(length=12)
    separate = SeparateLayers(model)
    with torch.no_grad(), separate.streaming():
        hidden, arguments = separate.inputs({"input_ids": ids})
        for index in range(len(separate.layers)):
            stream = Stream(KeyValueStore([(0, 12)]), torch.zeros(12, dtype=torch.long))
            hidden = separate.run(index, hidden, arguments[index], stream)
        found = separate.loss(hidden, {"input_ids": ids}, ids, items=12)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    expected = nn.functional.cross_entropy(logits[0], ids[0], reduction="sum") / 12
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_model_is_as_it_was_afterwards():
    model, ids = copy.deepcopy(tiny_model("gpt2")), prompt(length=5)
    before = model(input_ids=ids).logits
    separate = SeparateLayers(model)
    names = [set(vars(module)) for module in model.modules()]
    with separate.streaming():
        separate.inputs({"input_ids": ids})
    assert [set(vars(module)) for module in model.modules()] == names
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("name", "message"),
    [("qwen3_next", "0 attention modules"), ("mamba2", "attention modules|no decoder layers")],
)
def test_layers_that_cannot_be_called_alone_are_refused_with_the_reason(name, message):
    with pytest.raises(ConfigError, match=message):
        SeparateLayers(tiny_model(name))


def test_what_is_no_language_model_or_shares_layers_is_refused():
    with pytest.raises(ConfigError, match="Linear is no causal language model"):
        SeparateLayers(nn.Linear(2, 2))
    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(ConfigError, match="share parameters"):
        SeparateLayers(model)
    model = copy.deepcopy(tiny_model("llama"))
    model.loss_function = lambda **options: None
    with pytest.raises(ConfigError, match="its loss is"):
        SeparateLayers(model)
