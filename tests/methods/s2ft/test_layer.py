"""The tuner's layers: exact gradients, training, saved bytes, merging and switching."""

import copy

import peft
import pytest
import torch
from causal_models import LLAMA, batch, causal_model
from s2ft_models import filled, run_steps, s2ft, weights_of
from trained_slices import twin_of

import featherweight as fw
from featherweight.methods.s2ft.layer import s2ft_layers

BOTH_AXES = {"target_modules": ["o_proj", "down_proj", "up_proj", "v_proj"], "num_channels": 4, "multiple_of": 1}


@pytest.mark.parametrize("update", ["delta", "inplace"])
def test_gradients_and_adamw_steps_equal_those_of_a_masked_full_training(update):
    model = s2ft(causal_model("llama with biases", torch.float64), **BOTH_AXES, update=update)
    twin, masked = twin_of(causal_model("llama with biases", torch.float64), s2ft_layers(model))
    layers = s2ft_layers(model)
    loss, expected = (one(**batch(), use_cache=False).loss for one in (model, twin))
    loss.backward()
    expected.backward()
    assert loss.item() == expected.item()
    for name, layer in layers.items():
        gradient = masked[name].weight.grad
        rows = gradient.t() if layer.s2ft_axis["default"] == "input" else gradient
        # float64, two layers; the loss itself goes through float32 in the model, alike on both sides.
        torch.testing.assert_close(
            layer.s2ft_delta["default"].grad, rows[layer.s2ft_indices["default"].long()], rtol=1e-10, atol=1e-12
        )
    model.zero_grad(), twin.zero_grad()

    options = {"lr": 1e-2, "weight_decay": 0.0}
    run_steps(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **options), 5)
    run_steps(twin, torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], **options), 5)

    model.merge_adapter()
    for name, layer in layers.items():
        # Adam divides by the root of squares: entries with a gradient near zero amplify rounding.
        torch.testing.assert_close(layer.get_base_layer().weight, masked[name].weight.detach(), rtol=1e-7, atol=1e-8)


def test_accumulation_over_four_micro_batches_equals_one_batch():
    gradients = []
    for micro_batches in (1, 4):
        model = s2ft(causal_model("llama", torch.float64))
        layers = s2ft_layers(model).values()

        class Keep:
            def __init__(self, layers):
                self.layers, self.found = layers, []

            def step(self):
                self.found = [layer.s2ft_delta["default"].grad.clone() for layer in self.layers]

            def zero_grad(self):
                pass

        keep = Keep(layers)
        run_steps(model, keep, 1, micro_batches)
        gradients.append(keep.found)

    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)  # the model's loss is float32


def test_training_equals_lora_whose_a_is_the_selection():
    model = s2ft(causal_model("llama", torch.float64))
    layers = s2ft_layers(model)
    lora = peft.get_peft_model(
        causal_model("llama", torch.float64),
        peft.LoraConfig(r=8, lora_alpha=8, target_modules=["o_proj", "down_proj"]),
    )
    for name, layer in layers.items():
        other = lora.base_model.model.get_submodule(name)
        selection = torch.zeros_like(other.lora_A["default"].weight)
        selection[torch.arange(8), layer.s2ft_indices["default"].long()] = 1
        other.lora_A["default"].weight.data.copy_(selection)
        other.lora_A["default"].weight.requires_grad_(False)
    for one in (model, lora):
        run_steps(one, torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-2), 4)

    for name, layer in layers.items():
        other = lora.base_model.model.get_submodule(name)
        torch.testing.assert_close(
            layer.s2ft_delta["default"].t(), other.lora_B["default"].weight, rtol=1e-7, atol=1e-9
        )


def kept_bytes(model, inputs):
    """Return the bytes of the distinct storages that the forward pass keeps, parameters and buffers aside."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            alive.append(tensor)  # else its address is given to the next one
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(inputs_embeds=inputs, use_cache=False)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_keeps_exactly_its_selected_inputs_beyond_the_frozen_network(dtype):
    tokens = 2 * 64
    inputs = torch.randn(2, 64, 32).to(dtype).requires_grad_()
    frozen = causal_model("llama", dtype).requires_grad_(False)
    floor = kept_bytes(frozen, inputs)
    s2ft_bytes = kept_bytes(s2ft(causal_model("llama", dtype)), inputs) - floor
    lora = peft.get_peft_model(
        causal_model("llama", dtype), peft.LoraConfig(r=4, target_modules=["o_proj", "down_proj"])
    )
    lora_bytes = kept_bytes(lora, inputs) - floor

    layers = LLAMA["num_hidden_layers"]
    assert s2ft_bytes == layers * 2 * tokens * 8 * dtype.itemsize
    # The attention keeps the input of o_proj anyway; that of down_proj, 48 wide, nobody else needs.
    assert lora_bytes >= layers * tokens * 48 * dtype.itemsize


def test_layers_below_the_lowest_trained_one_need_no_backward():
    model = s2ft(causal_model("llama"), layers_to_transform=[1])
    grad_of = {}
    first = model.base_model.model.model.layers[0]
    first.register_forward_hook(lambda module, args, output: grad_of.update(needs=output.requires_grad))

    model(**batch()).loss.backward()

    assert grad_of["needs"] is False and len(s2ft_layers(model)) == 2


@pytest.mark.parametrize("layout", ["standard", "channel_major"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_random_switches_among_overlapping_adapters_leave_the_base_unchanged(layout, architecture):
    base = causal_model(architecture, torch.bfloat16).eval()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = s2ft(base, layout=layout, channel_ratio=0.5, num_channels=None)
    for seed in range(1, 5):
        model.add_adapter(
            f"a{seed}",
            fw.S2FTConfig(channel_ratio=0.5, seed=seed, axis_pattern={"up_proj|c_fc": "output"} if seed == 4 else {}),
        )
    filled(model)
    names = ["default", "a1", "a2", "a3", "a4"]
    model.set_adapter("a2")
    expected = model(**batch()).logits
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        count = int(torch.randint(0, 4, (), generator=generator))
        chosen = [names[i] for i in torch.randperm(5, generator=generator)[:count]]
        for layer in s2ft_layers(model).values():
            layer.switch(chosen)
    for layer in s2ft_layers(model).values():
        layer.switch(["a2"])
    # bf16: the merged weight is rounded, the change beside it is not.
    torch.testing.assert_close(model(**batch()).logits, expected, rtol=0.1, atol=0.3)
    model.unmerge_adapter()
    unloaded = model.unload()

    for name, tensor in unloaded.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name
        assert tensor.is_contiguous()


def test_merge_rounds_once_and_unmerge_brings_the_bytes_back_where_subtraction_would_not():
    base = causal_model("llama", torch.bfloat16)
    model = filled(s2ft(base), size=3.0)
    before = weights_of(model)
    model.merge_adapter(safe_merge=True)
    for name, layer in s2ft_layers(model).items():
        wide = before[name].float() + layer.get_delta_weight("default")
        assert torch.equal(layer.get_base_layer().weight, wide.bfloat16())
    model.unmerge_adapter()
    after = weights_of(model)

    assert all(torch.equal(after[name], before[name]) for name in before)
    subtracted = next(iter(before.values())).float()
    assert not torch.equal(((subtracted + 3.3).bfloat16().float() - 3.3).bfloat16(), subtracted.bfloat16())


def test_safe_merge_refuses_nan_and_leaves_the_weight_alone():
    model = filled(s2ft(causal_model("llama")))
    layer = next(iter(s2ft_layers(model).values()))
    before = layer.get_base_layer().weight.clone()
    layer.s2ft_delta["default"].data[0, 0] = torch.nan

    with pytest.raises(fw.errors.NumericsError, match="adapter='default' holds NaNs"):
        layer.merge(safe_merge=True)

    assert torch.equal(layer.get_base_layer().weight, before) and not layer.merged


def test_two_active_adapters_add_up_and_scaling_scales():
    base = causal_model("llama", torch.float64).eval()
    model = s2ft(copy.deepcopy(base))
    model.add_adapter("other", fw.S2FTConfig(num_channels=16, seed=3))
    filled(model)
    model.base_model.set_adapter(["default", "other"])
    model.base_model.set_scale("other", -0.5)
    with torch.no_grad():
        for name, layer in s2ft_layers(model).items():
            dense = layer.get_delta_weight("default") * 1.0 + layer.get_delta_weight("other")
            base.get_submodule(name).weight += dense

    torch.testing.assert_close(model(**batch()).logits, base(**batch()).logits, rtol=1e-9, atol=1e-9)


def test_dropout_acts_in_training_alone_and_on_the_change_alone():
    model = filled(s2ft(causal_model("llama"), s2ft_dropout=0.5))
    plain = causal_model("llama").eval()(**batch()).logits
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = model(**batch()).logits, model(**batch()).logits
    model.eval()

    assert not torch.equal(first, second)
    assert torch.equal(model(**batch()).logits, model(**batch()).logits)
    with model.disable_adapter():
        assert torch.equal(model(**batch()).logits, plain)


def test_hooks_of_the_base_layer_still_run():
    model = filled(s2ft(causal_model("llama")))
    layer = next(iter(s2ft_layers(model).values()))
    calls = []
    layer.get_base_layer().register_forward_hook(lambda *_: calls.append(1))

    model(**batch()).loss.backward()

    assert calls == [1]


def test_autocast_trains_in_bf16_with_float32_adapters():
    model = s2ft(causal_model("llama"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch()).loss.backward()

    for layer in s2ft_layers(model).values():
        gradient = layer.s2ft_delta["default"].grad
        assert gradient.dtype == torch.float32 and gradient.abs().sum() > 0
