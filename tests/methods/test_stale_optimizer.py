"""An optimizer that was built before a method exchanged or froze its parameters is told so at its first step."""

import gc
import weakref

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.s2ft.method import S2FT
from featherweight.methods.welore import WeLore
from featherweight.models import load_model

CHANGES = {
    "inrank": (fw.InRank(buffer=4), "taken out of the model by fw.apply of InRank"),
    "welore": (WeLore(min_dim=16), "taken out of the model by fw.apply of WeLore"),
    "lora": (fw.LoRA(r=4), "frozen by fw.apply of LoRA"),
    "s2ft": (S2FT(num_channels=8), "frozen by fw.apply of S2FT"),
    "s2ft inplace": (S2FT(num_channels=8, update="inplace"), "frozen by fw.apply of S2FT"),
}
OPTIMIZERS = {
    "of torch": torch.optim.AdamW,
    "of torch, fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "ours": fw.optim.AdamW,
}


def step(model, optimizer):
    tokens = torch.randint(0, 64, (1, 8), generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


@pytest.fixture
def model():
    return load_model("tiny").train()


# Mutation: without the note, torch steps over parameters without a gradient, and the factors never move.
@pytest.mark.parametrize("name", CHANGES)
def test_an_optimizer_from_before_is_refused_and_one_from_afterwards_trains(name, model):
    method, words = CHANGES[name]
    before = [make(model.parameters()) for make in OPTIMIZERS.values()]
    fw.apply(model, method)
    for optimizer in before:
        with pytest.raises(ConfigError, match=f"{words} after this optimizer had been built.*Build the optimizer"):
            step(model, optimizer)
    later = torch.optim.AdamW(model.parameters())  # frozen ones among them, as most loops have it
    for _ in range(2):
        step(model, later)


@pytest.mark.parametrize("name", CHANGES)
def test_an_optimizer_of_what_remove_has_taken_out_is_refused_and_one_from_before_apply_works_again(name, model):
    method, _ = CHANGES[name]
    first = torch.optim.AdamW(model.parameters())
    fw.apply(model, method)
    second = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    fw.remove(model, method)
    with pytest.raises(ConfigError, match="taken out of the model by fw.remove of "):
        step(model, second)
    if {id(p) for p in model.parameters()} == {id(p) for group in first.param_groups for p in group["params"]}:
        step(model, first)


@pytest.mark.parametrize("method", [fw.MsT(chunk_size=4), fw.Int8(), fw.CoreGradient()])
def test_methods_that_keep_parameters_keep_optimizers(method, model):
    optimizer = fw.optim.AdamW(model.parameters())
    fw.apply(model, method)
    step(model, optimizer)
    fw.remove(model, method)
    step(model, optimizer)


def test_other_models_and_parameters_that_train_elsewhere_are_no_matter(model):
    shared = model.model.layers[0].mlp.up_proj
    other = nn.Sequential(shared)
    optimizer = torch.optim.AdamW(other.parameters())
    fw.apply(model, fw.InRank(buffer=4))
    other(torch.ones(1, shared.in_features)).square().sum().backward()
    optimizer.step()
    step(load_model("tiny"), torch.optim.AdamW(load_model("tiny").parameters()))


def test_what_was_taken_out_is_not_kept_alive(model):
    weight = weakref.ref(model.model.layers[0].mlp.up_proj.weight)
    fw.apply(model, fw.InRank(buffer=4))
    gc.collect()
    assert weight() is None
