"""Putting chosen channels side by side."""

import copy

import peft
import pytest
import torch
from causal_models import ARCHITECTURES, batch, causal_model
from s2ft_models import indices_of

import featherweight as fw


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_permuting_changes_no_logit_and_unpermuting_restores_every_byte(architecture, dtype):
    model = causal_model(architecture, dtype).eval()
    with torch.no_grad():  # biases and norms that are all equal would hide that they were left behind
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel(), dtype=dtype).sin())
    before = copy.deepcopy(model.state_dict())
    inputs = batch()["input_ids"]
    with torch.no_grad():
        expected = model(inputs).logits
    chosen = {
        name: torch.tensor(one)
        for name, one in indices_of(
            peft.get_peft_model(copy.deepcopy(model), fw.S2FTConfig(num_channels=16, seed=5))
        ).items()
    }

    permuted = fw.s2ft.permute(model, chosen)

    assert permuted.slices.keys() == chosen.keys()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        found = model(inputs).logits
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < (1e-12 if dtype == torch.float64 and not _rounds(architecture) else 1e-5)
    for name, (start, stop) in permuted.slices.items():
        weight, old = model.get_submodule(name).weight, before[f"{name}.weight"]
        dimension = 0 if architecture == "gpt2" else 1
        moved = weight.narrow(dimension, start, stop - start)
        wanted = old.index_select(dimension, chosen[name])
        assert sorted(moved.sum(1 - dimension).tolist()) == pytest.approx(
            sorted(wanted.sum(1 - dimension).tolist()), rel=1e-4
        )
    fw.s2ft.unpermute(model, permuted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _rounds(architecture):
    """Norms of these models go through float32, whatever the weights are."""
    return architecture not in ("gpt2", "gpt_neox", "phi")


def test_three_partly_chosen_groups_are_left_for_gathering():
    model = causal_model("llama", num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    heads = torch.tensor([0, 2, 4])
    permuted = fw.s2ft.permute(
        model, {"model.layers.0.self_attn.o_proj": (heads[:, None] * 8 + torch.arange(8)).flatten()}
    )
    assert not permuted.slices and not permuted.orders
