"""Adapters of models whose weights are quantised."""

import copy

import peft
import pytest
import torch
from causal_models import batch, causal_model
from s2ft_models import adapted, filled
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.method import S2FT
from featherweight.nn.int8_module import Int8Module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_bitsandbytes_base_trains_merges_and_comes_back(bits, tmp_path):
    bnb = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    # In evaluation mode bitsandbytes goes over to other CPU kernels and back; there is no dropout here.
    base = causal_model("llama", hidden_size=64, intermediate_size=128).train()
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            if bits == 4:
                new = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
            parent, _, last = name.rpartition(".")
            setattr(base.get_submodule(parent), last, new)
    base.to("cpu")
    base.requires_grad_(False).enable_input_require_grads()  # the path through its kernels with gradients
    plain = base(**batch()).logits.detach()
    model = adapted(base)
    torch.testing.assert_close(model(**batch()).logits, plain)
    model(**batch()).loss.backward()
    gradients = [layer.s2ft_delta["default"].grad for layer in s2ft_layers(model).values()]
    assert all(one.dtype == torch.float32 and one.abs().sum() > 0 for one in gradients)
    filled(model)
    changed = model(**batch()).logits.detach()

    model.merge_adapter()
    merged = model(**batch()).logits.detach()
    model.unmerge_adapter()
    again = model(**batch()).logits.detach()

    assert torch.equal(again, changed)
    with model.disable_adapter():
        assert torch.equal(model(**batch()).logits, plain)
    # Rounded once more to 4 or 8 bits: near, and nearer than the base without the change.
    assert (merged - changed).norm() < (plain - changed).norm()
    with pytest.raises(ConfigError, match="update='inplace' does not go with quantized"):
        model.add_adapter("inplace", fw.S2FTConfig(num_channels=8, update="inplace"))


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
