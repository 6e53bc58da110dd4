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
from featherweight.optim.backward.window import Part


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


# ---- steps in parts


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()


@pytest.mark.parametrize("name", ["adamw", "galore"])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(name):
    rows = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    models = [two_layers() for _ in range(2)]
    whole = build(models[0], name)
    parts = build(models[1], name)
    with layerwise(models[1], parts) as handle:
        for _ in range(3):
            models[0](rows).square().sum().backward()
            whole.step()
            whole.zero_grad()
            with handle.parts() as tell:
                hidden = models[1][0](rows)
                cut = hidden.detach().requires_grad_()
                before = models[1][1].weight.clone()
                for index in range(4):
                    tell(Part(is_first=index == 0, is_last=index == 3))
                    models[1][1](cut[index]).square().sum().backward()
                    assert torch.equal(models[1][1].weight, before) == (index < 3)  # updated in its last part
                tell(Part(is_first=True, is_last=True))
                hidden.backward(cut.grad)
    assert handle.steps == 3
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_parts_of_a_step_cannot_begin_in_the_middle_of_a_window():
    model = two_layers()
    with layerwise(model, build(model, "adamw"), accumulation_steps=2) as handle:
        model(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
        with pytest.raises(ConfigError, match=r"1 of 2 micro-batches of a window.*discard\(\)"):
            with handle.parts():
                pass
        handle.discard()


def test_what_an_exception_leaves_of_a_step_in_parts_is_dropped():
    model = two_layers()
    with layerwise(model, build(model, "galore")) as handle:
        with pytest.raises(ZeroDivisionError):
            with handle.parts() as tell:
                tell(Part(is_first=True, is_last=False))
                model(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
                assert list(handle.held_tensors())
                raise ZeroDivisionError
        assert not list(handle.held_tensors())
        model(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
        assert handle.steps == 1
