"""Layers grow without a change of their function, and moments follow."""

import math

import pytest
import torch
from causal_models import batch, causal_model, logits
from inrank_runs import FAST, train
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.linalg.random import keyed_generator
from featherweight.methods.inrank import InRank, grow, growth_state
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.nn.low_rank_linear import LowRankLinear


@pytest.mark.parametrize("name", ["llama", "llama with biases", "gpt2", "smollm"])
def test_growth_keeps_the_function_and_only_new_columns_learn_at_first(name, generator):
    model = causal_model(name).eval()
    fw.apply(model, InRank(buffer=3, init_rank=2))
    before = logits(model)
    layer = next(iter(low_rank_modules(model).values()))
    old = layer.rank
    grow(layer, old + 4, None, generator)
    # Zeros are added to every sum; only the order of summation may change.
    torch.testing.assert_close(logits(model), before, rtol=1e-6, atol=1e-6 * float(before.abs().max()))
    assert layer.rank == old + 4 and not layer.U.weight[:, old:].any()
    rows = layer.V.weight.detach()
    torch.testing.assert_close(rows[old:] @ rows[:old].mT, torch.zeros(4, old), rtol=0, atol=1e-5)
    sizes = rows.square().mean(1).sqrt()
    assert float(sizes[old:].mean()) == pytest.approx(float(sizes[:old].mean()), rel=0.2)
    model(**batch()).loss.backward()
    assert layer.U.weight.grad[:, old:].abs().min() > 0
    assert not layer.V.weight.grad[old:].any() and layer.V.weight.grad[:old].any()


def test_growth_in_float64_changes_no_bit(generator):
    layer = LowRankLinear(20, 30, 5, dtype=torch.float64)
    x = torch.randn(7, 20, generator=generator, dtype=torch.float64)
    expected = layer(x).detach()
    grow(layer, 9, None, generator)
    torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"criterion": "variance"}, torch.float32),
        ({"rank_multiple": 8}, torch.bfloat16),
        ({"max_rank": 6}, torch.float32),
        ({"growth": "change"}, torch.bfloat16),
    ],
)
def test_variants_of_growth_learn_and_stay_within_their_limits(options, dtype):
    model = causal_model("llama", dtype)
    method = InRank(**{**FAST, **options})
    fw.apply(model, method)
    losses = train(model, method, torch.optim.AdamW(model.parameters(), lr=2e-2), 16)
    assert losses[-1] < losses[0]
    layers = low_rank_modules(model)
    assert all(m.U.weight.dtype == dtype for m in layers.values())
    if "max_rank" in options:
        assert all(m.rank <= 6 for m in layers.values())
    if "rank_multiple" in options:
        for entry in growth_state(model).history:
            layer = layers[entry["layer"]]
            assert entry["live"] % 8 == 0 or entry["live"] == method.limit(layer.out_features, layer.in_features)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=2e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=2e-2),
    "our adamw": lambda p: fw.optim.AdamW(p, lr=2e-2),
    "galore": lambda p: fw.optim.GaLoreAdamW(p, lr=2e-2, rank=4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_follows_growth_and_freezing(name):
    model = causal_model("llama")
    method = InRank(**FAST, freeze_step=9, patience=None)
    fw.apply(model, method)
    optimizer = OPTIMIZERS[name](model.parameters())
    losses = train(model, method, optimizer, 14)
    assert growth_state(model).is_frozen and max(growth_state(model).ranks.values()) > 1
    assert all(m.rank == growth_state(model).ranks[n] for n, m in low_rank_modules(model).items())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}
    for parameter, state in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            if key in state and name != "galore":
                assert state[key].shape == parameter.shape
    assert losses[-1] < losses[0] and all(math.isfinite(loss) for loss in losses)


def test_freezing_at_full_rank_keeps_product_and_moments():
    model = causal_model("llama", torch.float64)
    method = InRank(**FAST, drop_buffer=False, patience=None)
    fw.apply(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, method, optimizer, 6)
    before = logits(model)
    optimizer.zero_grad()
    model(**batch()).loss.backward()
    # A momentum that is the gradient itself: after the change of coordinates it must still be it.
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"].copy_(parameter.grad)
    method.freeze(model, optimizer)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-9)
    optimizer.zero_grad()
    model(**batch()).loss.backward()
    for name, layer in low_rank_modules(model).items():
        for parameter in (layer.U.weight, layer.V.weight):
            buffer = optimizer.state[parameter]["momentum_buffer"]
            (
                torch.testing.assert_close(
                    buffer, parameter.grad, rtol=0, atol=1e-8 * float(parameter.grad.abs().max() + 1)
                ),
                name,
            )


def test_no_growth_and_a_full_buffer_is_plain_factored_training():
    first, second = causal_model("llama"), causal_model("llama")
    method = InRank(explained=1.0, init_rank=2, buffer=100, every=1, warmup=0, patience=None)
    for model in (first, second):
        fw.apply(model, method)
    assert all(m.rank == method.limit(m.out_features, m.in_features) for m in low_rank_modules(first).values())
    one, other = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (first, second))
    losses = train(first, method, one, 6)
    plain = []
    for step in range(1, 7):
        loss = second(**batch(seed=step % 3)).loss
        loss.backward()
        other.step()
        other.zero_grad()
        plain.append(loss.item())
    assert losses == plain
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_layers_with_an_activation_grow_exactly_and_keep_their_size():
    model = causal_model("llama")
    method = InRank(**{**FAST, "buffer": 6}, activation="silu", patience=2, explained=0.5)
    fw.apply(model, method)
    layer = model.model.layers[0].mlp.up_proj
    before = logits(model)
    grow(layer, layer.rank + 3, None, keyed_generator(0, 1))
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    losses = train(model, method, torch.optim.AdamW(model.parameters(), lr=1e-2), 20)
    assert losses[-1] < losses[0] and growth_state(model).is_frozen and growth_state(model).history
    with pytest.raises(ConfigError, match="activation"):
        fw.remove(model, method)


def test_layer_wise_updates_are_refused_before_anything_is_lost():
    model = causal_model("llama")
    method = InRank(**FAST)
    fw.apply(model, method)
    optimizer = fw.optim.AdamW(model.parameters(), lr=1e-2)
    for layer in low_rank_modules(model).values():
        nn.init.normal_(layer.U.weight)
    with fw.optim.layerwise(model, optimizer), pytest.raises(ConfigError, match="layer-wise"):
        method.after_step(model, optimizer, 3)
