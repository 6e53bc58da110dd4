"""S2FT beside a base of int8 weights: both methods of this package, in either order."""

import copy

import peft
import pytest
import torch
from causal_models import batch, causal_model

import featherweight as fw
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.method import S2FT
from featherweight.nn.int8_module import Int8Module


def filled(model):
    generator = torch.Generator().manual_seed(0)
    for layer in s2ft_layers(model).values():
        delta = layer.s2ft_delta["default"]
        delta.data.copy_(torch.randn(delta.shape, generator=generator) * 0.1)
    return model


def int8_base(architecture):
    model = causal_model(architecture)
    fw.apply(model, fw.Int8())
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("selection", ["random", "weight"])
def test_an_int8_base_trains_merges_and_comes_back(architecture, selection, tmp_path):
    base = int8_base(architecture)
    twin = copy.deepcopy(base)
    fw.remove(twin, fw.Int8())  # float weights of the values of the codes
    codes = {name: buffer.clone() for name, buffer in base.named_buffers()}
    plain = base(**batch()).logits.detach()
    config = {"num_channels": 8, "selection": selection}
    model, other = (peft.get_peft_model(one, fw.S2FTConfig(**config)) for one in (base, twin))
    assert torch.equal(model(**batch()).logits, plain)

    for one in (model, other):
        filled(one)(**batch()).loss.backward()
    for one, expected in zip(*(s2ft_layers(m).values() for m in (model, other)), strict=True):
        assert isinstance(one.get_base_layer(), Int8Module) and not isinstance(expected.get_base_layer(), Int8Module)
        assert torch.equal(one.s2ft_indices["default"], expected.s2ft_indices["default"])
        # float32; the same products in another order
        torch.testing.assert_close(
            one.s2ft_delta["default"].grad, expected.s2ft_delta["default"].grad, rtol=1e-3, atol=1e-5
        )
    changed = model(**batch()).logits.detach()
    model.merge_adapter()
    merged = model(**batch()).logits.detach()
    assert (merged - changed).norm() < 0.2 * (plain - changed).norm()
    copied = copy.deepcopy(model)
    for one in (model, copied):
        one.unmerge_adapter()
        assert torch.equal(one(**batch()).logits, changed)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(int8_base(architecture), tmp_path)
    assert torch.equal(loaded(**batch()).logits, changed)

    unloaded = model.unload()
    assert torch.equal(unloaded(**batch()).logits, plain)
    assert all(torch.equal(buffer, codes[name]) for name, buffer in unloaded.named_buffers())


@pytest.mark.parametrize("order", [(fw.Int8(), S2FT(num_channels=8)), (S2FT(num_channels=8), fw.Int8())])
def test_both_methods_in_either_order_compute_the_same(order):
    model, expected = causal_model("llama"), int8_base("llama")
    for method in order:
        fw.apply(model, method)
    fw.apply(expected, S2FT(num_channels=8))
    for one in (model, expected):
        filled(one)(**batch()).loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("s2ft_delta" in name for name in trained)
    for one, other in zip(*(s2ft_layers(m).values() for m in (model, expected)), strict=True):
        assert isinstance(one.get_base_layer(), Int8Module)
        assert torch.equal(one.s2ft_delta["default"].grad, other.s2ft_delta["default"].grad)
    with torch.no_grad():
        changed = model(**batch()).logits
        for layer in s2ft_layers(model).values():
            layer.merge()
            layer.unmerge()
        assert torch.equal(model(**batch()).logits, changed)
