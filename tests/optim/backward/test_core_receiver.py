"""Which weights leave cores, why others do not, and what a core costs."""

import pytest
import torch
from torch import nn

from featherweight.optim import AdamW, GaLoreAdamW
from featherweight.optim.backward.core_receiver import costs, why_full


def layout_of(shape, **options):
    weight = nn.Parameter(torch.empty(shape, device="meta"))
    (layout,) = GaLoreAdamW([weight], **{"rank": 8, **options}).layouts.values()
    return layout


def test_costs_are_those_of_the_products_and_of_what_is_kept():
    share, core_bytes, gradient_bytes = costs(layout_of((64, 32)), 2)
    assert share == 8 * (64 + 32) / (64 * 32)
    assert (core_bytes, gradient_bytes) == (64 * 8 * 4, 64 * 32 * 2)


@pytest.mark.parametrize(
    ("options", "prefer", "reason"),
    [
        ({}, "speed", None),
        ({"rank": 24}, "speed", "of the FLOPs"),
        ({"rank": 24}, "memory", None),
        ({"proj_type": "reverse_std", "rank": 31}, "memory", None),
        ({"residual": "fira"}, "speed", "residual=fira"),
        ({"basis_method": "gaussian", "moment_policy": "keep"}, "speed", "not orthonormal"),
    ],
)
def test_a_weight_gets_its_whole_gradient_where_a_core_is_no_gain(options, prefer, reason):
    found = why_full(layout_of((64, 32), **options), 4, prefer)
    assert found is None if reason is None else reason in found


def test_full_rank_moments_want_the_whole_gradient():
    (layout,) = AdamW([nn.Parameter(torch.empty(8, 8))]).layouts.values()
    assert "full-rank" in why_full(layout, 4, "speed")
