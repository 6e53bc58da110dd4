"""AdamW at full rank against torch and its formulas."""

import math

import pytest
import torch
from matrix_steps import gradients, parameter, run

from featherweight.optim import AdamW

FP32_EPS = torch.finfo(torch.float32).eps


class TestAdamWTwin:
    def test_float32_equals_torch_adamw(self):
        ours, theirs = parameter(33, 7), parameter(33, 7)
        grads = gradients((33, 7), 20)
        result = run(AdamW([ours], lr=0.01, weight_decay=0.1), ours, grads)
        torch.testing.assert_close(
            result, run(torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1), theirs, grads), rtol=1e-6, atol=1e-6
        )

    def test_official_eps_and_decay_order_follow_their_formula(self):
        ours = parameter(6, 5, dtype=torch.float64)
        weight = ours.detach().clone()
        lr, eps, decay, (beta1, beta2) = 0.01, 1e-3, 0.1, (0.9, 0.99)
        exp_avg = torch.zeros_like(weight)
        exp_avg_sq = torch.zeros_like(weight)
        grads = gradients((6, 5), 4, dtype=torch.float64)
        for t, grad in enumerate(grads, 1):
            exp_avg = beta1 * exp_avg + (1 - beta1) * grad
            exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
            weight = weight - lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * exp_avg / (exp_avg_sq.sqrt() + eps)
            weight = weight - lr * decay * weight
        optimizer = AdamW(
            [ours], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, eps_mode="official", decay_order="after"
        )
        torch.testing.assert_close(run(optimizer, ours, grads), weight, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(("bits", "share"), [(16, 0.01), (8, 0.05), (4, 0.30)])
    def test_low_bit_moments_follow_the_float32_path(self, bits, share):
        # The share of the path length that rounding may add: measured 0.002, 0.018, 0.13.
        full, low = parameter(64, 128), parameter(64, 128)
        start = full.detach().clone()
        grads = [g + 0.5 for g in gradients((64, 128), 20)]
        path = run(AdamW([full], lr=0.01), full, grads) - start
        error = run(AdamW([low], lr=0.01, state_bits=bits), low, grads) - start - path
        assert 0 < error.norm() / path.norm() < share
