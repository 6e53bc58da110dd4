"""Nothing reaches a kernel whose sizes, dtypes and devices were not compared, and new rows are adopted by a call."""

import copy

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError, DeviceError, ShapeError
from featherweight.optim.step.adam import step_fused_

OPTIMIZERS = {
    "adamw": fw.optim.AdamW,
    "adamw 8-bit": lambda params: fw.optim.AdamW(params, state_bits=8),
    "galore": lambda params: fw.optim.GaLoreAdamW(params, rank=8),
    "galore, full rank": lambda params: fw.optim.GaLoreAdamW([{"params": list(params), "low_rank": False}]),
    "apollo": lambda params: fw.optim.Apollo(params, rank=8),
    "tensor_galore": lambda params: fw.optim.TensorGaLoreAdamW(params),
}


def step(optimizer, *parameters):
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(400, 64), (64, 400), (16, 64), (64,), (4, 16, 64)])
def test_a_parameter_that_changes_its_shape_between_steps_is_refused_and_nothing_is_written(name, shape):
    # Mutation: without the comparison torch's fused kernel writes 340 KB beyond each moment.
    parameter, other = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(64, 64))
    optimizer = OPTIMIZERS[name]([parameter, other])
    step(optimizer, parameter, other)
    before = [copy.deepcopy(dict(optimizer.state[p])) for p in (parameter, other)]
    parameter.data = torch.ones(shape)
    weight = other.detach().clone()
    with pytest.raises(ShapeError, match=r"parameter 0.*expected \(64, 64\).*adopt_new_rows"):
        step(optimizer, parameter, other)
    assert torch.equal(other, weight) and torch.equal(parameter, torch.ones(shape))
    for state, p in zip(before, (parameter, other), strict=True):
        assert all(torch.equal(value, optimizer.state[p][key]) for key, value in state.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_shape_that_changes_before_the_first_step_is_no_fault(name):
    parameter = nn.Parameter(torch.ones(64, 64))
    optimizer = OPTIMIZERS[name]([parameter])
    optimizer.report()
    parameter.data = torch.ones(80, 64)
    step(optimizer, parameter)
    assert not torch.equal(parameter, torch.ones(80, 64))


def test_a_gradient_from_before_the_change_is_refused():
    parameter = nn.Parameter(torch.ones(8, 8))
    parameter.grad = torch.ones(8, 8)
    optimizer = fw.optim.AdamW([parameter])
    parameter.data = torch.ones(100, 8)
    with pytest.raises(ShapeError, match=r"gradient of shape \(8, 8\)"):
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_put_into_a_group_by_hand_is_refused(name):
    parameter = nn.Parameter(torch.ones(64, 64))
    optimizer = OPTIMIZERS[name]([parameter])
    step(optimizer, parameter)
    stranger = nn.Parameter(torch.ones(64, 64))
    optimizer.param_groups[0]["params"][0] = stranger
    with pytest.raises(ConfigError, match="by hand"):
        step(optimizer, stranger)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_on_the_meta_device_is_refused(name):
    parameter = nn.Parameter(torch.ones(64, 64, device="meta"))
    with pytest.raises(DeviceError, match="meta device and has no values"):
        step(OPTIMIZERS[name]([parameter]), parameter)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_double_precision_after_the_first_step_is_refused_and_half_precision_works(name):
    for dtype in (torch.bfloat16, torch.float16):
        parameter = nn.Parameter(torch.ones(64, 64))
        optimizer = OPTIMIZERS[name]([parameter])
        step(optimizer, parameter)
        parameter.data = parameter.data.to(dtype)
        before = parameter.detach().clone()
        for _ in range(20):
            step(optimizer, parameter)
        assert not torch.equal(parameter, before) and bool(parameter.isfinite().all())
    parameter.data = parameter.data.double()
    with pytest.raises(ConfigError, match=r"torch.float64 and its state was made for torch.float32"):
        step(optimizer, parameter)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("wrong", [torch.zeros(7, 8), torch.zeros(8, 8).double(), torch.zeros(1).expand(8, 8)])
def test_a_moment_that_does_not_fit_never_reaches_the_fused_kernel(key, wrong):
    parameter = nn.Parameter(torch.ones(8, 8))
    optimizer = fw.optim.AdamW([parameter])
    step(optimizer, parameter)
    optimizer.state[parameter][key] = wrong
    parameter.grad = torch.ones(8, 8)
    with pytest.raises(ShapeError, match="Do not write into optimizer.state"):
        step_fused_([optimizer.member(parameter, optimizer.param_groups[0])], [parameter.grad])


# ---- new rows


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(60, 40)
        self.head = nn.Linear(40, 60)

    def loss(self):
        return self.head(self.embedding.weight).square().mean()

    def grow(self, rows, *, in_place):
        for module in (self.embedding, self.head):
            larger = torch.cat([module.weight.data, torch.ones(rows, 40)])
            if in_place:
                module.weight.data = larger
            else:
                module.weight = nn.Parameter(larger)
        self.head.bias.data = torch.cat([self.head.bias.data, torch.zeros(rows)])


def train(model, optimizer, steps=2):
    for _ in range(steps):
        model.loss().backward()
        optimizer.step()
        optimizer.zero_grad()


NAMED = {
    **OPTIMIZERS,
    "torch adamw": lambda params: torch.optim.AdamW(params, fused=True),
    "torch sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "torch adafactor": lambda params: torch.optim.Adafactor(params, lr=0.1),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("in_place", [True, False])
def test_new_rows_are_adopted_and_trained_and_old_moments_stay(name, in_place):
    model = Model()
    if name == "galore, full rank":
        optimizer = fw.optim.GaLoreAdamW([{"params": list(model.named_parameters()), "low_rank": False}])
    else:
        optimizer = NAMED[name](list(model.named_parameters()))
    train(model, optimizer)
    old = dict(optimizer.state[model.embedding.weight])
    model.grow(5, in_place=in_place)
    assert fw.optim.adopt_new_rows(optimizer, model) == ["embedding.weight", "head.weight", "head.bias"]
    state = optimizer.state[model.embedding.weight] if model.embedding.weight in optimizer.state else {}
    if "exp_avg" in old and old["exp_avg"].shape == (60, 40):
        assert torch.equal(state["exp_avg"][:60], old["exp_avg"]) and not state["exp_avg"][60:].any()
        assert torch.equal(state["step"], old["step"])
    before = copy.deepcopy(dict(model.named_parameters()))
    train(model, optimizer)
    assert all(not torch.equal(before[name][-5:], p[-5:]) for name, p in model.named_parameters())
    assert fw.optim.adopt_new_rows(optimizer, model) == []


def test_other_changes_are_not_adopted():
    model = Model()
    optimizer = fw.optim.AdamW(model.named_parameters())
    train(model, optimizer)
    model.embedding.weight.data = torch.ones(70, 41)
    with pytest.raises(ShapeError, match=r"'embedding.weight' has shape \(70, 41\), its state that of \(60, 40\)"):
        fw.optim.adopt_new_rows(optimizer)
    model = Model()
    optimizer = fw.optim.AdamW(model.parameters())
    train(model, optimizer)
    model.grow(5, in_place=False)
    with pytest.raises(ConfigError, match="lacks 'embedding.weight'"):
        fw.optim.adopt_new_rows(optimizer, model)


def test_resized_embeddings_of_transformers_train_on_after_the_call():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    for tied in (True, False):
        config = transformers.LlamaConfig(**sizes, vocab_size=40, tie_word_embeddings=tied)
        model = transformers.LlamaForCausalLM(config)
        optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=8), lr=1e-3)
        tokens = torch.randint(0, 40, (2, 8))
        for at in range(4):
            if at == 2:
                model.resize_token_embeddings(46)
                expected = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tied)
                assert fw.optim.adopt_new_rows(optimizer, model) == expected
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters()}


def test_a_layerwise_optimizer_is_refused():
    model = Model()
    optimizer = fw.optim.AdamW(model.named_parameters())
    with fw.optim.layerwise(model, optimizer):
        model.loss().backward()
        model.grow(5, in_place=True)
        with pytest.raises(ConfigError, match="layer-wise"):
            fw.optim.adopt_new_rows(optimizer, model)
        with pytest.raises(ShapeError, match="expected"):
            model.loss().backward()
