"""The hooks of layer-wise updates: what they leave alone, and that they end, break and are copied without a trace."""

import copy
import io

import pytest
import torch
from layerwise_llama import (
    assert_same_run,
    batches,
    build,
    llama,
    loss_of,
)
from torch import nn

from featherweight.optim import (
    AdamW,
    layerwise,
)


def test_autograd_grad_is_no_micro_batch():
    model = llama()
    optimizer = build("adamw", model)
    with layerwise(model, optimizer, accumulation_steps=2) as handle:
        torch.autograd.grad(loss_of(model, *batches(1)), [model.lm_head.weight])
        loss_of(model, *batches(1)).backward()
        assert handle.steps == 0
        loss_of(model, *batches(1)).backward()
        assert handle.steps == 1


def test_removing_restores_an_ordinary_optimizer_and_leaves_no_hook():
    model = llama()
    optimizer = build("galore", model)
    handle = layerwise(model, optimizer)
    loss_of(model, *batches(1)).backward()
    handle.remove()
    handle.remove()
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
    loss_of(model, *batches(1)).backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    layerwise(model, optimizer).remove()


def test_micro_batches_that_are_left_at_the_end_are_announced():
    model = llama()
    optimizer = build("galore", model)
    with (
        pytest.warns(UserWarning, match="1 of 2 micro-batches wait"),
        layerwise(model, optimizer, accumulation_steps=2),
    ):
        loss_of(model, *batches(1)).backward()


def test_an_exception_in_a_backward_pass_does_not_confuse_the_next():
    model = llama()
    optimizer = build("galore", model)
    with layerwise(model, optimizer, accumulation_steps=2) as handle:
        blocked = model.model.layers[0].mlp.up_proj.weight.register_hook(lambda grad: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loss_of(model, *batches(1)).backward()
        blocked.remove()
        with pytest.warns(UserWarning, match="a backward pass was broken off; the 0 micro-batches before it"):
            loss_of(model, *batches(1)).div(100).backward()
        loss_of(model, *batches(1)).div(100).backward()
        assert handle.steps == 1
        assert all(int(state["step"].max()) == 1 for state in optimizer.state.values())
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_copies_and_files_of_the_model_leave_the_optimizer_out():
    model = llama()
    optimizer = build("adamw", model)
    with layerwise(model, optimizer):
        loss_of(model, *batches(1)).backward()
        copied = copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        assert buffer.tell() < 2.5 * sum(p.nbytes for p in model.parameters())
        loss_of(copied, *batches(1)).backward()
        assert all(p.grad is not None for p in copied.parameters())
        assert all(int(state["step"]) == 1 for state in optimizer.state.values())


def test_autocast_does_not_reach_the_end_of_a_window():
    runs = []
    for is_cast in (False, True):
        model = llama()
        optimizer = build("galore", model)
        with layerwise(model, optimizer, accumulation_steps=2):
            for tokens in batches(3):
                loss_of(model, tokens).div(100).backward()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_cast):
                optimizer.step()
        runs.append((model, optimizer))
    assert_same_run(*runs)


def test_frozen_and_unused_parameters_are_left_alone():
    model = llama()
    model.model.layers[1].requires_grad_(False)
    model.unused = nn.Parameter(torch.ones(3))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = AdamW([p for p in model.parameters()], lr=1e-2)
    with layerwise(model, optimizer, accumulation_steps=2) as handle:
        for tokens in batches(4):
            loss_of(model, tokens).div(100).backward()
    assert handle.steps == 2
    for name, p in model.named_parameters():
        assert torch.equal(p, start[name]) == ("layers.1" in name or name == "unused")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_wrapped_model_trains_only_its_adapters():
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    runs = []
    for is_layerwise in (False, True):
        torch.manual_seed(0)
        model = peft.get_peft_model(llama(), config)
        optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        handle = layerwise(model, optimizer) if is_layerwise else None
        for tokens in batches(3):
            loss_of(model, tokens).div(100).backward()
            optimizer.step()
            optimizer.zero_grad()
        if handle:
            assert handle.steps == 3
            handle.remove()
        runs.append((model, optimizer))
    for a, b in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        assert torch.equal(a, b)
