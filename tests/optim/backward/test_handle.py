"""How long layer-wise updates live, and what others may do with their parameters."""

import copy
import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods import CoreGradient
from featherweight.optim import build_optimizer, layerwise, parse_optimizer


def build(model, name="galore"):
    options = {} if name == "adamw" else {"rank": 2}
    return build_optimizer(model, parse_optimizer({"name": name, "lr": 1e-2, **options}))


@contextmanager
def no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["adamw", "galore", "ldadam"])
@pytest.mark.parametrize("is_used", [False, True])
def test_the_updates_end_at_once_with_their_optimizer(name, is_used):
    # Mutation: one strong reference from a hook, slot or sum to the updates, and the old optimizer takes the gradients.
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    fw.apply(model, CoreGradient())
    optimizer = build(model, name)
    layerwise(model, optimizer, accumulation_steps=2)
    if is_used:
        for _ in range(3):  # one step, and a window that has begun
            model(torch.ones(4, 8)).square().mean().backward()
    with no_garbage_collection():
        watched = weakref.ref(optimizer)
        del optimizer
        assert watched() is None
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.ones(4, 8)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    torch.optim.AdamW(model.parameters()).step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_handle_alone_keeps_its_optimizer():
    model = nn.Sequential(nn.Linear(8, 8))
    handle = layerwise(model, build(model))
    gc.collect()
    model(torch.ones(4, 8)).square().mean().backward()
    assert handle.steps == 1 and handle.is_active
    handle.remove()
    assert not handle.is_active and handle.steps == 1


@pytest.mark.parametrize("other", [torch.optim.AdamW, torch.optim.SGD, fw.optim.AdamW])
def test_the_step_of_another_optimizer_over_the_same_parameters_is_refused(other):
    # Mutation: without the look before each step it would find no gradients, and do nothing.
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    ours = fw.optim.GaLoreAdamW(fw.optim.param_groups(model[:1], rank=2), lr=1e-2)
    handle = layerwise(model, ours)
    theirs, apart = other(model.parameters(), lr=1e-2), other(model[1].parameters(), lr=1e-2)
    model(torch.ones(4, 8)).square().mean().backward()
    apart.step()  # has nothing in common with ours
    ours.step()
    with pytest.raises(ConfigError, match=r"2 of 4 parameters.*'0.weight'.*GaLoreAdamW.*Call remove\(\)"):
        theirs.step()
    handle.remove()
    before = model[0].weight.detach().clone()
    model(torch.ones(4, 8)).square().mean().backward()
    theirs.step()
    assert not torch.equal(before, model[0].weight)


def test_a_copy_of_a_model_belongs_to_nobody():
    model = nn.Sequential(nn.Linear(8, 8))
    handle = layerwise(model, build(model, "adamw"))
    copied = copy.deepcopy(model)
    copied(torch.ones(4, 8)).square().mean().backward()
    torch.optim.SGD(copied.parameters(), lr=1.0).step()
    assert handle.steps == 0 and not torch.equal(copied[0].weight, model[0].weight)
    layerwise(copied, build(copied, "adamw")).remove()
