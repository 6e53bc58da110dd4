"""Where backward passes begin and end: shared parameters, checkpoints, several forward passes."""

import pytest
import torch
from layerwise_llama import Tower, assert_same_run, batches, build, llama, loss_of, tower_loss, train_ordinary
from torch import nn
from torch.utils.checkpoint import checkpoint

from featherweight.errors import ConfigError, NumericsError
from featherweight.optim import (
    AdamW,
    GaLoreAdamW,
    layerwise,
    param_groups,
)


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_shared_and_tied_parameters_step_once_under_both_kinds_of_checkpointing(use_reentrant, accumulation_steps):
    # Mutation: under re-entrant checkpointing the hook of `shared` fires three times in one backward pass.
    runs = []
    for is_layerwise in (False, True):
        model = Tower(use_reentrant)
        groups = param_groups(model, ["shared", "0", "2"], rank=5, update_proj_gap=1000)
        optimizer = GaLoreAdamW(groups, lr=1e-2)
        data = batches(4 * accumulation_steps)
        if is_layerwise:
            with layerwise(model, optimizer, accumulation_steps=accumulation_steps) as handle:
                for tokens in data:
                    tower_loss(model, tokens).backward()
            assert handle.steps == 4
            assert int(optimizer.state[model.shared.weight]["step"]) == 4
        else:
            for start in range(0, len(data), accumulation_steps):
                for tokens in data[start : start + accumulation_steps]:
                    tower_loss(model, tokens).backward()
                optimizer.step()
                optimizer.zero_grad()
        runs.append((model, optimizer))
    if accumulation_steps == 1:
        assert_same_run(*runs)
    else:
        # The first basis comes from one micro-batch and is refined after it, so the runs differ a little.
        moved = [(a - b).norm() for a, b in zip(runs[0][0].parameters(), Tower().parameters(), strict=True)]
        apart = [(a - b).norm() for a, b in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True)]
        assert sum(apart) < 0.5 * sum(moved)


class Mixed(nn.Module):
    """A layer that runs once inside a re-entrant checkpoint and once plainly, in either order."""

    def __init__(self, is_inside_first):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.is_inside_first = nn.Linear(8, 12), nn.Linear(12, 12), is_inside_first

    def forward(self, x):
        x = self.first(x)
        for is_inside in (self.is_inside_first, not self.is_inside_first):
            x = x + torch.tanh(checkpoint(self.shared, x, use_reentrant=True) if is_inside else self.shared(x))
        return x


@pytest.mark.parametrize("is_inside_first", [False, True])
def test_a_layer_inside_and_outside_of_reentrant_checkpoints_steps_once(is_inside_first):
    runs = []
    for is_layerwise in (False, True):
        model = Mixed(is_inside_first)
        optimizer = AdamW(model.parameters(), lr=1e-2)
        handle = layerwise(model, optimizer) if is_layerwise else None
        for seed in range(3):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if handle:
            handle.remove()
        assert int(optimizer.state[model.shared.weight]["step"]) == 3
        runs.append((model, optimizer))
    assert_same_run(*runs)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_two_forward_passes_may_share_a_backward_pass(use_reentrant):
    # As in DPO: a loss of chosen and rejected answers.
    runs = []
    for is_layerwise in (False, True):
        model = Tower(use_reentrant)
        optimizer = AdamW(model.parameters(), lr=1e-2)
        handle = layerwise(model, optimizer) if is_layerwise else None
        for seed in range(3):
            chosen, rejected = batches(2, seed=seed)
            (tower_loss(model, chosen) - 0.1 * tower_loss(model, rejected)).backward()
            optimizer.step()
            optimizer.zero_grad()
        if handle:
            assert handle.steps == 3
            handle.remove()
        runs.append((model, optimizer))
    assert_same_run(*runs)


def test_a_module_that_begins_to_repeat_inside_reentrant_checkpoints_is_refused():
    model = Tower(True)
    single = model.single
    optimizer = AdamW(model.parameters())
    with layerwise(model, optimizer):
        tower_loss(model, *batches(1)).backward()
        model.single = nn.Sequential()  # from here on `shared` takes its place, too
        model.shared = single
        with pytest.raises(NumericsError, match="second gradient in one backward pass"):
            tower_loss(model, *batches(1)).backward()


def test_a_reentrant_checkpoint_outside_of_a_call_of_the_model_is_refused():
    model = Tower(True)
    optimizer = AdamW(model.parameters())
    with layerwise(model, optimizer), pytest.raises(ConfigError, match="Call the model that you gave to layerwise"):
        model.forward(*batches(1)).sum().backward()


@pytest.mark.parametrize("kind", ["stock", "reentrant"])
def test_transformers_gradient_checkpointing_changes_nothing(kind):
    runs = []
    for is_layerwise in (False, True):
        model = llama()
        model.activation_checkpointing_enable({"use_reentrant": kind == "reentrant"})
        model.enable_input_require_grads()
        optimizer = build("galore", model)
        if is_layerwise:
            with layerwise(model, optimizer):
                for tokens in batches(4):
                    (loss_of(model, tokens) / tokens[:, 1:].numel()).backward()
        else:
            train_ordinary(model, optimizer, batches(4))
        runs.append((model, optimizer))
    assert_same_run(*runs)


def test_autocast_does_not_reach_the_update():
    # The backward pass runs inside autocast here; a product of the update in bfloat16 would differ by 1e-3.
    runs = []
    for is_layerwise in (False, True):
        model = llama()
        optimizer = build("galore", model)
        handle = layerwise(model, optimizer) if is_layerwise else None
        for tokens in batches(4):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss_of(model, tokens).div(100).backward()
            optimizer.step()
            optimizer.zero_grad()
        if handle:
            handle.remove()
        runs.append((model, optimizer))
    assert_same_run(*runs)
