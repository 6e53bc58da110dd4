"""Periods of full rank: how long, how often, with which weights, from which momentum."""

import math

import pytest
import torch
from gum_periods import SHAPES, periods, run, seed_with
from low_rank_twins import gradients, muon, svd_basis
from torch import nn

from featherweight.optim import GUM


class TestPeriods:
    def test_a_period_lasts_from_one_refresh_to_the_next(self):
        flags = periods((4, 5), 0.5, 0, 4, 80)
        assert all(len(set(flags[i : i + 4])) == 1 for i in range(0, 80, 4))
        assert len(set(flags)) == 2

    @pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
    def test_the_share_of_full_periods_is_the_probability(self, probability):
        count = sum(sum(periods((3, 4), probability, seed, 1, 50, basis_method="random")) for seed in range(4))
        # 4 standard deviations of a binomial count of 200.
        assert abs(count - 200 * probability) < 4 * math.sqrt(200 * probability * (1 - probability))

    def test_the_choice_depends_on_seed_and_matrix_and_repeats(self):
        options = {"probability": 0.5, "gap": 1, "steps": 40}
        first, again, other = (periods((3, 4), seed=seed, **options) for seed in (0, 0, 1))
        assert first == again != other
        weights = [nn.Parameter(torch.zeros(3, 4)) for _ in range(40)]
        optimizer = GUM([{"params": weights, "rank": 2}], full_rank_probability=0.5)
        for weight in weights:
            weight.grad = torch.ones(3, 4)
        optimizer.step()
        count = sum("exp_avg_full" in optimizer.state[weight] for weight in weights)
        assert abs(count - 20) < 4 * math.sqrt(40 * 0.25)

    def test_zero_probability_never_leaves_the_subspace(self):
        assert not any(periods((3, 4), 0.0, 0, 1, 60))

    def test_stacked_matrices_never_leave_the_subspace(self):
        weight = nn.Parameter(torch.zeros(3, 4, 6))
        optimizer = GUM([{"params": [weight], "rank": 2}], full_rank_probability=0.9, update_proj_gap=1)
        for seed in range(8):
            weight.grad = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
            assert "exp_avg_full" not in optimizer.state[weight]


class TestWeights:
    """What the rule is fed, seen in the momentum after the first step of a period."""

    @pytest.mark.parametrize("probability", [0.2, 0.5])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_core_and_complement_are_weighted_so_that_the_expectation_is_the_gradient(self, probability, shape):
        (grad,) = gradients(shape, 1)
        fed = {}
        for seed in range(100):
            weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
            optimizer = GUM(
                [{"params": [weight], "rank": 3}], full_rank_probability=probability, seed=seed, basis_method="svd"
            )
            run(optimizer, weight, [grad])
            state = optimizer.state[weight]
            if "exp_avg_full" in state:
                fed["full"] = state["exp_avg_full"].clone()
                assert not state["exp_avg"].any()
            elif "basis_left" in state:
                fed["core"] = state["basis_left"] @ state["exp_avg"]
            else:
                fed["core"] = state["exp_avg"] @ state["basis_right"].T
            if len(fed) == 2:
                break
        left, _, right = torch.linalg.svd(grad)
        strongest = left[:, :3] @ left[:, :3].T @ grad
        torch.testing.assert_close(fed["core"], strongest / (1 - probability), rtol=0, atol=1e-12)
        torch.testing.assert_close(fed["full"], (grad - strongest) / probability, rtol=0, atol=1e-12)
        mean = (1 - probability) * fed["core"] + probability * fed["full"]
        torch.testing.assert_close(mean, grad, rtol=0, atol=1e-12)

    def test_momentum_starts_anew_in_every_full_period_and_in_the_subspace_after_it(self):
        gap, shape = 3, (6, 9)
        weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        optimizer = GUM(
            [{"params": [weight], "rank": 2}], full_rank_probability=0.5, update_proj_gap=gap, basis_method="svd",
            seed=seed_with("sffs"), lr=1.0,
        )  # fmt: skip
        grads = gradients(shape, 10, seed=2)
        for step, grad in enumerate(grads):
            before = weight.detach().clone()
            run(optimizer, weight, [grad])
            if step % gap == 0:
                basis = svd_basis(grad, 2)
                core = basis.T @ grad
                # The weight of the fed gradient does not matter: Newton-Schulz normalises it.
                alone = basis @ muon(core) if step in (0, 9) else muon(grad - basis @ core)
                torch.testing.assert_close(before - weight.detach(), alone, rtol=0, atol=1e-9)
        assert int(optimizer.state[weight]["moment_step"]) == 1
