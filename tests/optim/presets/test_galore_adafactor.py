"""GaLoreAdafactor against a slow twin over refreshes."""

import pytest
import torch
from low_rank_twins import GaLoreAdafactor as GaLoreAdafactorTwin
from low_rank_twins import assert_follows, gradients, is_left
from torch import nn

from featherweight.optim import GaLoreAdafactor, GaLoreAdamW
from featherweight.optim.policies.moments import rotate

SHAPES = [(7, 11), (11, 7), (8, 8)]
OPTIONS = {"lr": 0.05, "weight_decay": 0.1, "scale": 0.25}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
@pytest.mark.parametrize("beta1", [None, 0.9])
@pytest.mark.parametrize("policy", ["rotate", "keep"])
def test_steps_over_refreshes_equal_the_twin(shape, proj_type, beta1, policy):
    left = is_left(shape, proj_type)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    optimizer = GaLoreAdafactor(
        [{"params": [weight], "rank": 3, "proj_type": proj_type}], beta1=beta1, update_proj_gap=4, basis_method="svd",
        moment_policy=policy, **OPTIONS,
    )  # fmt: skip
    twin = GaLoreAdafactorTwin(
        start if left else start.T, 3, 4, beta1=beta1, rotates=policy == "rotate", **OPTIONS
    )  # fmt: skip
    # The twin has its row over the rank; behind a right basis that is the column. Mutations:
    # row and column swapped in the rotation, or overlaps that are not squared, differ by 1e-2.
    assert_follows(optimizer, weight, twin, gradients(shape, 10, seed=1, sizes=(1.0, 4.0, 0.2)), left)
    state = optimizer.state[weight]
    rank_side, long_side = ("row", "col") if left else ("col", "row")
    torch.testing.assert_close(state[f"exp_avg_sq_{rank_side}"], twin.rule.row, rtol=1e-9, atol=0)
    torch.testing.assert_close(state[f"exp_avg_sq_{long_side}"], twin.rule.column, rtol=1e-9, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_rotation_that_loses_energy_loses_it_in_row_and_column(side):
    # For V = row col / mean(row) with independent coordinates the new second moment is (C * C) V; its row and column
    # means must be what is stored, or the next step mixes means of two different sizes.
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.linalg.qr(torch.randn(12, 4, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    overlap = new.T @ old
    second = torch.rand(4, 1, generator=generator, dtype=torch.float64) @ torch.rand(1, 7, generator=generator).double()
    expected = (overlap * overlap) @ second
    if side == "right":
        second, expected = second.T, expected.T
    moments = {"exp_avg_sq_row": second.mean(dim=1), "exp_avg_sq_col": second.mean(dim=0)}
    rotate(moments, (overlap, None) if side == "left" else (None, overlap), 3, (0.0, 0.0))
    torch.testing.assert_close(moments["exp_avg_sq_row"], expected.mean(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments["exp_avg_sq_col"], expected.mean(dim=0), rtol=1e-12, atol=0)


def test_reset_starts_the_decay_of_the_second_moment_again():
    # Decay 1 - t^-0.8 counts from the reset: the first step after it takes its gradient alone.
    weight = nn.Parameter(torch.zeros(6, 9, dtype=torch.float64))
    optimizer = GaLoreAdafactor(
        [{"params": [weight], "rank": 2}], beta1=None, update_proj_gap=4, basis_method="svd", moment_policy="reset"
    )
    for grad in gradients((6, 9), 5):
        weight.grad = grad
        optimizer.step()
    state = optimizer.state[weight]
    core = state["basis_left"].T @ grad
    torch.testing.assert_close(state["exp_avg_sq_row"], core.square().mean(dim=1), rtol=1e-12, atol=1e-15)


def test_a_step_is_no_longer_than_lr_and_scale_allow():
    # The root mean square of the core's direction is at most 1, and the basis keeps its norm.
    weight = nn.Parameter(torch.zeros(20, 30, dtype=torch.float64))
    optimizer = GaLoreAdafactor([{"params": [weight], "rank": 5}], beta1=None, lr=1.0, scale=0.5)
    for grad in gradients((20, 30), 6, sizes=(1.0, 100.0)):
        before = weight.detach().clone()
        weight.grad = grad
        optimizer.step()
        assert (weight.detach() - before).norm() <= 0.5 * (5 * 30) ** 0.5 * (1 + 1e-12)


@pytest.mark.parametrize(("beta1", "per_core"), [(None, 0), (0.9, 3 * 11)])
@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_state_bytes_are_those_of_a_row_a_column_and_the_first_moment(beta1, per_core, proj_type):
    weight = nn.Parameter(torch.zeros(11, 11))
    optimizer = GaLoreAdafactor([{"params": [weight], "rank": 3, "proj_type": proj_type}], beta1=beta1)
    predicted = optimizer.state_bytes()
    weight.grad = torch.ones(11, 11)
    optimizer.step()
    stored = sum(tensor.nbytes for tensor in optimizer.state[weight].values())
    assert predicted == stored == 4 * (3 + 11 + per_core + 11 * 3) + 5 * 8


def test_the_preset_is_galore_with_the_adafactor_rule_bit_by_bit():
    results = []
    for optimizer_type, more in (
        (GaLoreAdafactor, {"beta1": 0.9}),
        (GaLoreAdamW, {"rule": "adafactor", "betas": (0.9, 0.0)}),
    ):
        weights = [nn.Parameter(torch.ones(shape)) for shape in ((12, 20), (2, 8, 10), (5,))]
        optimizer = optimizer_type(weights, lr=0.01, rank=3, update_proj_gap=3, weight_decay=0.1, **more)
        generator = torch.Generator().manual_seed(0)
        for _ in range(7):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
        results.append(weights)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
