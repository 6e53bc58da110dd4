"""Which step a parameter gets, and into which matrices it is split."""

import pytest
import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.optim import GaLoreAdamW


def layout_of(shape, **group):
    with torch.device("meta"):
        parameter = nn.Parameter(torch.empty(shape))
    return GaLoreAdamW([{"params": [("mlp.gate_up_proj", parameter)], "rank": 2, **group}]).layouts[parameter]


@pytest.mark.parametrize("shape", [(), (7,), (0, 5), (5, 0), (0, 6, 8), (3, 0, 4), (1, 50), (50, 1), (1, 1)])
def test_vectors_and_empty_and_thin_parameters_keep_full_rank_moments(shape):
    assert layout_of(shape).rank is None


@pytest.mark.parametrize(
    ("shape", "group", "blocks", "rows", "columns"),
    [
        ((8, 4, 3), {}, 8, 4, 3),
        ((8, 4, 3), {"stacked": False}, None, 8, 12),
        ((8, 4, 3, 3), {}, None, 8, 36),
        ((8, 4, 3, 3, 3), {}, None, 8, 108),
        ((1, 6, 8), {}, 1, 6, 8),
        ((12, 8), {"split": {"up_proj": 3}}, 3, 4, 8),
    ],
)
def test_shapes_become_matrices(shape, group, blocks, rows, columns):
    layout = layout_of(shape, **group)
    assert (layout.blocks, layout.rows, layout.columns) == (blocks, rows, columns)


def test_a_split_that_matches_no_name_is_refused():
    with pytest.raises(ConfigError, match="split='qkv' matches no parameter"):
        layout_of((12, 8), split={"qkv": 3})


@pytest.mark.parametrize(
    ("dtype", "basis_bits", "expected"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, 4, torch.bfloat16),
        (torch.bfloat16, 32, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.float32, 4, torch.float32),
        (torch.float64, None, torch.float64),
    ],
)
def test_products_run_in_bfloat16_beside_bfloat16_weights_unless_wider_bases_are_asked_for(dtype, basis_bits, expected):
    parameter = nn.Parameter(torch.empty(8, 12, dtype=dtype, device="meta"))
    layout = GaLoreAdamW([parameter], rank=2, basis_bits=basis_bits).layouts[parameter]
    assert layout.product_dtype == expected
