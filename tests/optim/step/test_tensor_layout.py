"""What is decided for a tensor: views, ranks, bytes."""

import copy
import math

import pytest
import torch
from tensor_steps import SHAPE, Product, build, gradients, train, uneven_gradients, weight_of

from featherweight.errors import CheckpointError, ConfigError
from featherweight.linalg.tucker_fit import fit_tucker
from featherweight.linalg.tucker_ranks import greedy_ranks, tucker_ranks
from featherweight.optim import AdamW, layerwise


@pytest.mark.parametrize("options", [
    {}, {"proj_type": "slices"}, {"proj_type": "select"}, {"proj_type": "matrix"}, {"state_bits": 8},
    {"complex_mode": "real_pair"}, {"sparse_ratio": 0.05}, {"sparse_ratio": 0.05, "sparse_select": "randk"},
    {"skip_tol": 0.1},
])  # fmt: skip
def test_state_bytes_are_exact_before_the_first_step_and_after(options):
    shape = (24, 24, 8, 5)
    weight = weight_of(shape, torch.complex64)
    optimizer = build(weight, rank=0.25, **options)
    before = optimizer.state_bytes()
    train(optimizer, weight, gradients(5, shape, torch.complex64))
    assert before == optimizer.state_bytes() == sum(each.nbytes for each in optimizer.state[weight].values())


@pytest.mark.parametrize("options", [
    {}, {"proj_type": "tucker_channels"}, {"state_bits": 8}, {"state_bits": 4, "basis_bits": 8}, {"sparse_ratio": 0.05},
    {"complex_mode": "real_pair"}, {"skip_tol": 0.1},
])  # fmt: skip
@pytest.mark.parametrize("budget", [0.02, 0.25, 0.9])
def test_automatic_ranks_take_no_more_bytes_than_was_said_before_the_first_step(options, budget):
    shape = (24, 24, 8, 5)
    weight = weight_of(shape, torch.complex64)
    optimizer = build(weight, rank="auto", rank_budget=budget, **options)
    before = optimizer.state_bytes()
    train(optimizer, weight, uneven_gradients(5, shape))
    plan, after = optimizer.layouts[weight].plan, optimizer.state_bytes()
    assert math.prod(plan.core_shape) <= budget * weight.numel()
    assert after == sum(each.nbytes for each in optimizer.state[weight].values())
    assert 0.4 * before < after <= before


def test_automatic_ranks_are_those_of_the_first_gradient_and_hold_more_of_it_than_even_ones():
    shape = (16, 12, 8, 6)
    first, second = uneven_gradients(2, shape)
    weight = weight_of(shape, torch.complex64)
    optimizer = build(weight, rank="auto", rank_budget=0.1)
    assert "at the first gradient" in str(optimizer.report())
    train(optimizer, weight, [first, second.flip(0, 1)])
    ranks = optimizer.layouts[weight].plan.ranks
    assert ranks == greedy_ranks(first, weight.numel() // 10) == tuple(optimizer.state[weight]["ranks"].tolist())
    even = tucker_ranks(shape, 0.1)
    assert ranks[0] < even[0]
    assert fit_tucker(first, ranks).error_sq < 0.9 * fit_tucker(first, even).error_sq
    assert " x ".join(map(str, ranks)) in str(optimizer.report())


def test_automatic_ranks_stay_with_the_state_in_copies_and_resumed_runs():
    shape = (16, 12, 8, 6)
    first, second = uneven_gradients(2, shape)
    weight = weight_of(shape, torch.complex64)
    optimizer = build(weight, rank="auto", rank_budget=0.1)
    train(optimizer, weight, [first])
    ranks = optimizer.layouts[weight].plan.ranks
    twin = weight_of(shape, torch.complex64)
    twin.data.copy_(weight.data)
    resumed = build(twin, rank="auto", rank_budget=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    # A gradient that would have been given other ranks.
    turned = second.transpose(0, 1).flip(1).reshape(shape)
    assert greedy_ranks(turned, weight.numel() // 10) != ranks
    model, copied = copy.deepcopy((weight, optimizer))
    for one, each in ((optimizer, weight), (resumed, twin), (copied, model)):
        train(one, each, [turned])
        assert one.layouts[each].plan.ranks == ranks
    assert torch.equal(weight, twin) and torch.equal(weight, model)
    with pytest.raises(CheckpointError, match="has ranks="):
        state = optimizer.state_dict()
        state["param_groups"][0]["rank"] = ranks
        build(weight_of(shape, torch.complex64), rank=ranks).load_state_dict(state)


def test_automatic_ranks_wait_for_a_gradient_that_says_something():
    weight = weight_of()
    before = weight.detach().clone()
    optimizer = build(weight, rank="auto", weight_decay=0.1)
    train(optimizer, weight, [torch.zeros_like(weight), torch.full_like(weight, float("nan"))])
    assert torch.equal(weight, before) and not optimizer.state[weight] and optimizer.skipped_steps == 1
    train(optimizer, weight, gradients(1))
    assert not torch.equal(weight, before) and int(optimizer.state[weight]["step"]) == 1


def test_a_whole_budget_is_adamw_and_kinds_with_one_rank_have_no_spectrum_to_follow():
    one, two = weight_of(), weight_of()
    train(build(one, rank="auto", rank_budget=1.0, weight_decay=0.1), one, gradients(3))
    train(AdamW([two], lr=1e-2, weight_decay=0.1), two, gradients(3))
    assert torch.equal(one, two)
    for kind in ("matrix", "slices", "select"):
        with pytest.raises(
            ConfigError, match=f"rank='auto' is not allowed; expected a number under proj_type='{kind}'"
        ):
            build(weight_of(), rank="auto", proj_type=kind)


@pytest.mark.parametrize("clip", ["delayed", "norm_growth", "projected"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_automatic_ranks_of_layerwise_steps_follow_the_sum_of_the_first_window(clip, accumulation_steps):
    # The sum of a window has another spectrum than its first part: one direction of a mode against another one.
    inputs = [torch.zeros(SHAPE, dtype=torch.complex128) for _ in range(4)]
    for index, x in enumerate(inputs):
        x[index % 2 * 3 :][:3] = gradients(1)[0][:3]
    one, two = Product(), Product()
    plain, inside = (build(each.weight, rank="auto", rank_budget=0.2) for each in (one, two))
    with layerwise(two, inside, accumulation_steps=accumulation_steps, clip=clip) as handle:
        for start in range(0, 4, accumulation_steps):
            for x in inputs[start : start + accumulation_steps]:
                one(x).backward()
                two(x).backward()
                assert two.weight.grad is None
            plain.step()
            plain.zero_grad()
            assert inside.layouts[two.weight].plan.ranks == plain.layouts[one.weight].plan.ranks
        assert handle.steps == 4 // accumulation_steps
    if clip != "norm_growth":
        torch.testing.assert_close(one.weight, two.weight, rtol=1e-10, atol=1e-10)


# ---- odd inputs


# ---- accumulation and layer-wise updates
