"""One matrix and its steps, as tests of the optimizers need them."""

from dataclasses import replace

import torch
from torch import nn

from featherweight.optim import GaLoreAdamW


def matrix(rows, columns, seed=0, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameter(rows, columns, seed=0, dtype=torch.float32):
    return nn.Parameter(matrix(rows, columns, seed, dtype))


def gradients(shape, steps, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(steps)]


def run(optimizer, weight, grads):
    for grad in grads:
        weight.grad = grad.to(weight.dtype).clone()
        optimizer.step()
    return weight.detach().clone()


def project_fully(optimizer):
    """Force R = min(M, N), which the optimizer itself would treat as full rank because it saves nothing."""
    for p, layout in optimizer.layouts.items():
        step, twin = optimizer.step_of(p), GaLoreAdamW([{"params": [p], "rank": 1}])
        rank = min(layout.rows, layout.columns)
        low = replace(twin.layouts[p], rank=rank, index=layout.index, rule=layout.rule)
        step.planned = step.layout = low.on_side(low.side, optimizer.param_groups[0])
    return optimizer
