"""Changes that train inside of the frozen weight."""

import copy

import pytest
import torch
from causal_models import batch, causal_model
from s2ft_models import filled, run_steps, s2ft, weights_of

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.in_place import InPlaceLinear
from featherweight.methods.s2ft.layer import Linear, s2ft_layers


def test_delta_and_inplace_train_alike():
    models = [s2ft(causal_model("llama", torch.float64), update=update) for update in ("delta", "inplace")]
    for model in models:
        run_steps(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2), 4)

    for one, other in zip(*(s2ft_layers(model).values() for model in models), strict=True):
        torch.testing.assert_close(one.s2ft_delta["default"], other.s2ft_delta["default"], rtol=1e-7, atol=1e-9)


def test_in_place_weights_come_back_bit_by_bit_when_disabled_or_changed():
    base = causal_model("llama", torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    plain = base.eval()(**batch()).logits
    model = filled(s2ft(base, update="inplace"))
    changed = model(**batch()).logits
    assert not torch.equal(changed, plain)
    assert not torch.equal(next(iter(weights_of(model).values())), before["model.layers.0.self_attn.o_proj.weight"])

    with model.disable_adapter():
        assert torch.equal(model(**batch()).logits, plain)
    assert torch.equal(model(**batch()).logits, changed)
    unloaded = model.unload()

    assert all(torch.equal(tensor, before[name]) for name, tensor in unloaded.state_dict().items())


def test_in_place_follows_optimizers_and_loaded_states_and_an_explicit_refresh():
    model = filled(s2ft(causal_model("llama").eval(), update="inplace"))
    layer = next(iter(s2ft_layers(model).values()))
    first = model(**batch()).logits
    with torch.no_grad():
        layer.s2ft_delta["default"].mul_(2)
    second = model(**batch()).logits
    layer.s2ft_delta["default"].data.mul_(2)  # moves no version counter
    assert torch.equal(model(**batch()).logits, second)
    layer.refresh()

    assert not torch.equal(second, first) and not torch.equal(model(**batch()).logits, second)


def test_a_reference_pass_without_adapters_before_the_backward_pass_is_right_or_refused():
    # As preference optimization does it: the policy's forward, the base's forward, then the policy's backward.
    gradients = []
    for update, between in (("delta", False), ("delta", True), ("inplace", True)):
        model = filled(s2ft(causal_model("llama"), update=update))
        loss = model(**batch()).loss
        if between:
            with torch.no_grad(), model.disable_adapter():
                model(**batch())
        if update == "inplace":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        else:
            loss.backward()
            gradients.append([layer.s2ft_delta["default"].grad for layer in s2ft_layers(model).values()])

    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_an_ordinary_layer_holds_nothing_of_this_and_becomes_one_when_such_an_adapter_comes():
    model, twin = (s2ft(causal_model("llama", torch.float64), seed=seed) for seed in (0, 0))
    before = s2ft_layers(model)
    for layer in before.values():
        assert type(layer) is Linear and not {"_written", "_copied_version"} & vars(layer).keys()
    for one, update in ((model, "inplace"), (twin, "delta")):
        one.add_adapter("second", fw.S2FTConfig(num_channels=8, seed=1, update=update))
        one.set_adapter("second")
        filled(one)
    after = s2ft_layers(model)
    assert all(type(after[name]) is InPlaceLinear and after[name] is layer for name, layer in before.items())
    assert all(type(layer) is Linear for layer in s2ft_layers(twin).values())
    for copied in (model, copy.deepcopy(model)):
        losses = [one(**batch()).loss for one in (copied, twin)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)  # fp64 in another order
    with model.disable_adapter(), twin.disable_adapter():
        assert torch.equal(model(**batch()).logits, twin(**batch()).logits)


def test_weights_that_hold_no_change_are_refused_and_the_layer_stays_ordinary():
    base = causal_model("llama")
    fw.apply(base, fw.Int8())
    model = s2ft(base)
    with pytest.raises(ConfigError, match="update='inplace' does not go with quantized weights"):
        model.add_adapter("second", fw.S2FTConfig(num_channels=8, update="inplace"))
    assert all(type(layer) is Linear for layer in s2ft_layers(model).values())
