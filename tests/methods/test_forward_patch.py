"""Another forward for a module, and the way back."""

import copy

import causal_models as models
import pytest
import torch

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.forward_patch import is_patched

# Chunks that divide neither 3 rows of 19 tokens nor 57 tokens.
METHOD = {"chunk_size": 8, "head_chunk_size": 5}


def test_remove_restores_every_module():
    model, inputs = models.causal_model("llama"), models.batch()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    expected = models.loss_and_gradients(model, inputs)
    fw.apply(model, fw.MsT(**METHOD))
    assert sum(map(is_patched, model.modules())) == 3
    models.loss_and_gradients(model, inputs)

    fw.remove(model, fw.MsT())

    assert {name: dict(vars(module)).keys() for name, module in model.named_modules()} == {
        name: attributes.keys() for name, attributes in before.items()
    }
    loss, _ = models.loss_and_gradients(model, inputs)
    assert torch.equal(loss, expected[0])
    assert model(**inputs).logits is not None


def test_a_deep_copy_is_changed_too_and_independent():
    model, inputs = models.causal_model("llama"), models.batch()
    fw.apply(model, fw.MsT(**METHOD))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)

    fw.remove(model, fw.MsT())

    assert twin(**inputs).logits is None and model(**inputs).logits is not None
    stock = models.causal_model("llama")
    stock.load_state_dict(twin.state_dict())
    models.assert_same_step(models.loss_and_gradients(twin, inputs), models.loss_and_gradients(stock, inputs))
    fw.remove(twin, fw.MsT())


def test_a_wrapper_around_a_changed_model_must_go_first():
    model = models.causal_model("llama")
    fw.apply(model, fw.MsT())
    ours = model.forward
    model.forward = lambda *args, **kwargs: ours(*args, **kwargs)

    with pytest.raises(ConfigError, match="was replaced by"):
        fw.remove(model, fw.MsT())
