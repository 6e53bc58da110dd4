"""Weights of 16 bits."""

import math

import pytest
import torch
from matrix_steps import gradients, parameter, run
from torch import nn

from featherweight.optim import AdamW, GaLoreAdamW

FP32_EPS = torch.finfo(torch.float32).eps


class TestBfloat16:
    def test_stochastic_rounding_keeps_updates_below_half_a_unit(self):
        # Weight 1, update 1e-3: a quarter of bfloat16's unit 2^-8 at 1... nearest rounding never moves.
        moved = {}
        for stochastic in (True, False):
            weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
            optimizer = AdamW([weight], lr=1e-3, weight_decay=0, stochastic_rounding=stochastic)
            run(optimizer, weight, [torch.ones(4096)] * 20)
            moved[stochastic] = 1 - weight.detach().float().mean().item()
        assert moved[False] == 0
        # Mean of 4096 draws of width 2^-8 over 20 steps: standard error about 2^-8 / 2 * sqrt(20 / 4096) = 1.4e-4.
        assert abs(moved[True] - 0.02) < 4 * 1.4e-4

    @pytest.mark.parametrize("low_rank", [False, True])
    def test_second_moments_in_16_bits_fall_when_the_gradient_falls(self, low_rank):
        # To nearest they would never: a decay of 0.999 is less than half a unit of bfloat16.
        weight = nn.Parameter(torch.zeros(80, 160))
        group = {"params": [weight], "rank": 32, "low_rank": low_rank, "basis_method": "random"}
        optimizer = GaLoreAdamW([group], state_bits=16, update_proj_gap=1000)
        run(optimizer, weight, [*gradients((80, 160), 5), *[torch.zeros(80, 160)] * 300])
        expected = 5 * 0.001 * 0.999**300
        # 5 draws a value: relative spread sqrt(2 / 5) over 5120 values or more, and rounding adds less; 4 errors: 4 %.
        assert optimizer.state[weight]["exp_avg_sq"].dtype == torch.bfloat16
        assert optimizer.state[weight]["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=0.04)

    @pytest.mark.parametrize("proj_type", ["std", "reverse_std", "full"])
    def test_bfloat16_weights_follow_float32_weights(self, proj_type):
        shape = (48, 80)
        full = parameter(*shape)
        half = nn.Parameter(full.detach().bfloat16())
        full.data.copy_(half.data)
        start = full.detach().clone()
        options = {"lr": 0.1, "update_proj_gap": 4, "basis_bits": 32, "scale": 1.0}
        grads = [g.bfloat16().float() for g in gradients(shape, 12)]
        group = {"rank": 8, "proj_type": proj_type}
        path = run(GaLoreAdamW([{"params": [full], **group}], **options), full, grads) - start
        error = run(GaLoreAdamW([{"params": [half], **group}], **options), half, grads).float() - start - path
        # Stochastic rounding adds noise below one unit (2^-7 relative) a write, unbiased: it adds up like sqrt(12),
        # and its share along the path is noise / (|path| sqrt(3840)), about 0.01. Mutation: a lost tile or a wrong
        # factor gives 0.1 to 1.
        assert error.norm() < math.sqrt(12) * 2**-7 * start.norm()
        assert abs((error * path).sum() / path.square().sum()) < 0.04

    @pytest.mark.parametrize("proj_type", ["left", "right", "full"])
    def test_products_in_bfloat16_change_an_update_by_less_than_a_percent(self, proj_type):
        # Without rounding of the weight: of a weight of zeros what remains is the update itself. Mutation: a product
        # in float32 gives 0; a factor or a transposed basis gives 1.
        updates = []
        for basis_bits in (16, 32):
            weight = nn.Parameter(torch.zeros(48, 80, dtype=torch.bfloat16))
            optimizer = GaLoreAdamW([weight], lr=0.01, rank=8, proj_type=proj_type, basis_bits=basis_bits, seed=0)
            updates.append(run(optimizer, weight, gradients((48, 80), 1)).double())
        difference = (updates[0] - updates[1]).norm() / updates[1].norm()
        assert 0 < difference < 0.01
        assert (updates[0] * updates[1]).sum() / updates[1].square().sum() == pytest.approx(1, abs=3e-3)

    def test_rounding_does_not_depend_on_the_tile(self, monkeypatch):
        results = []
        for elements in (1 << 20, 64):
            monkeypatch.setattr("featherweight.optim.step.weight_update.TILE_ELEMENTS", elements)
            monkeypatch.setattr("featherweight.optim.step.weight_update.SLICE_ELEMENTS_CPU", elements * 4)
            weight, vector = (
                parameter(24, 20, dtype=torch.bfloat16),
                nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)),
            )
            optimizer = GaLoreAdamW(
                [{"params": [weight], "rank": 4, "proj_type": "left"}, {"params": [vector]}], lr=0.01
            )
            vector.grad = torch.ones(1000, dtype=torch.bfloat16)
            results.append((run(optimizer, weight, gradients((24, 20), 3)), vector.detach().clone()))
        assert torch.equal(results[0][1], results[1][1])
        # The GEMM of a tile may sum in another order, so a few elements fall on the other side of a rounding.
        assert (results[0][0] != results[1][0]).float().mean() < 0.01
