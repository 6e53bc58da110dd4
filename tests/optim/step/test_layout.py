"""What is decided for a parameter from its shape."""

import torch
from torch import nn

from featherweight.optim import GaLoreAdamW


def layout_of(shape, **group):
    with torch.device("meta"):
        parameter = nn.Parameter(torch.empty(shape))
    return GaLoreAdamW([{"params": [("mlp.gate_up_proj", parameter)], "rank": 2, **group}]).layouts[parameter]


def test_a_fused_projection_of_stacked_experts_is_split_inside_each_expert():
    layout = layout_of((4, 12, 8), split={"gate_up": 2})
    assert (layout.blocks, layout.rows, layout.columns) == (8, 6, 8)
    stack = torch.arange(4 * 12 * 8).view(4, 12, 8)
    assert torch.equal(layout.matrices(stack)[3], stack[1, 6:])
