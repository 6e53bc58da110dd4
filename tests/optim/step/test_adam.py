"""Which of the ways to compute an inner update ran, and that the report says so."""

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.optim import AdamW, GaLoreAdamW, TensorGaLoreAdamW
from featherweight.optim.step import together


def ran(optimizer):
    """Return the rows of the report after one step with gradients of ones."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    return {words: count for words, count in _table(optimizer)}


def _table(optimizer):
    return [list(row) for row in optimizer.report().section("Inner updates of the last step").rows]


def weight(*shape, dtype=torch.float32):
    return nn.Parameter(torch.ones(shape, dtype=dtype))


def test_nothing_ran_before_the_first_step():
    assert "Inner updates" not in AdamW([weight(4, 4)]).report().to_json()


def test_torchs_fused_kernel_updates_parameters_and_moments_of_one_dtype():
    assert ran(AdamW([weight(4, 4), weight(3)])) == {"torch's fused kernel": 2}


@pytest.mark.parametrize("rule", ["adamw", "sgd", "adafactor", "muon"])
def test_without_kernels_rules_are_pytorchs_operations(rule):
    # Mutation: a kernel for AdamW that takes the core of another rule.
    with fw.kernels.use("torch"):
        groups = [{"params": [weight(8, 16)], "rank": 2}, {"params": [weight(8, dtype=torch.bfloat16)]}]
        found = ran(GaLoreAdamW(groups, rule=rule))
    assert found == {"PyTorch operations": 2}


def test_lists_update_cores_where_launches_cost_more_than_work(monkeypatch):
    monkeypatch.setattr(together, "IN_PLACE_DEVICES", ())
    with fw.kernels.use("torch"):
        assert ran(GaLoreAdamW([weight(8, 16), weight(16, 8)], rank=2)) == {"lists of tensors": 2}
        assert ran(GaLoreAdamW([weight(8, 16)], rank=2, residual="fira")) == {"PyTorch operations": 1}


def test_complex_numbers_have_a_rule_of_their_own():
    optimizer = TensorGaLoreAdamW(
        [weight(8, 8, 4, 4, dtype=torch.complex64), weight(3, dtype=torch.complex64)], rank=0.25
    )
    assert ran(optimizer) == {"PyTorch operations, complex": 2}


def test_layerwise_updates_are_told_too():
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    optimizer = GaLoreAdamW(model.parameters(), rank=2)
    with fw.kernels.use("torch"), fw.optim.layerwise(model, optimizer, accumulation_steps=2):
        for _ in range(2):
            model(torch.ones(3, 16)).square().sum().backward()
    assert _table(optimizer) == [["PyTorch operations", 1]]
