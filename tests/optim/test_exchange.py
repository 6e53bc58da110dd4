"""Parameters that got more rows are adopted by a call, and their states follow."""

import copy

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError, ShapeError


def step(optimizer, *parameters):
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


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
    "adamw": fw.optim.AdamW,
    "adamw 8-bit": lambda params: fw.optim.AdamW(params, state_bits=8),
    "galore": lambda params: fw.optim.GaLoreAdamW(params, rank=8),
    "galore, full rank": lambda params: fw.optim.GaLoreAdamW([{"params": list(params), "low_rank": False}]),
    "apollo": lambda params: fw.optim.Apollo(params, rank=8),
    "tensor_galore": lambda params: fw.optim.TensorGaLoreAdamW(params),
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
