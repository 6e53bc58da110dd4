"""A small float64 model, its data by number, and training over any number of processes; for tests of `distributed`."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import featherweight as fw

STEPS, GAP, MICRO = 30, 5, 4
"""Optimizer steps, refresh interval, micro-batches of a step over all processes."""


class Net(nn.Module):
    """An embedding, three projected matrices (wide, tall, square) and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.up, self.mid, self.down = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 16)
        self.norm = nn.LayerNorm(16)
        self.extra = nn.Linear(16, 16)

    def forward(self, tokens: Tensor, use_extra: bool = False) -> Tensor:
        x = self.embed(tokens)
        x = self.norm(x + self.down(torch.tanh(self.mid(torch.tanh(self.up(x))))))
        return x + self.extra(x) if use_extra else x


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Micro-batch of a number: tokens (L,), of which only some count."""
    generator = torch.Generator().manual_seed(1000 + number)
    length = 3 + number % 4
    return torch.randint(0, 20, (length,), generator=generator), torch.randn(length, 16, generator=generator).double()


def loss_of(model: nn.Module, number: int) -> Tensor:
    tokens, target = batch(number)
    return (model(tokens) - target.to(next(model.parameters()).dtype)).square().sum()


def items_of(step: int) -> int:
    return sum(len(batch(number)[0]) for number in range(step * MICRO, (step + 1) * MICRO))


def optimizer_for(model: nn.Module, kind: str = "GaLoreAdamW", gap: int = GAP, **options: Any) -> Any:
    groups = fw.optim.param_groups(model, ["up", "mid", "down"], min_numel=1, rank=4, update_proj_gap=gap)
    if kind == "AdamW":
        return fw.optim.AdamW(model.parameters(), lr=1e-2, **options)
    return getattr(fw.optim, kind)(groups, lr=1e-2, **options)


def first_step(model: nn.Module, optimizer: Any) -> None:
    """An ordinary step on data that all have: a common first basis."""
    (loss_of(model, 10**6) / 5).backward()
    optimizer.step()
    optimizer.zero_grad()


def train(
    model: nn.Module,
    optimizer: Any,
    *,
    rank: int = 0,
    world_size: int = 1,
    steps: int = STEPS,
    layerwise: dict[str, Any] | None = None,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    spoil: Callable[[int, int], float] = lambda step, number: 1.0,
    start: int = 0,
) -> None:
    """Train on micro-batches rank, rank + W, ...; `spoil` multiplies the loss of a micro-batch of a step.

    A process that is short of one repeats its last with weight 0, as the loop does: every pass is a collective.
    """
    mine = [number for number in range(MICRO) if number % world_size == rank]
    passes = -(-MICRO // world_size)
    handle = None
    if layerwise is not None:
        handle = fw.optim.layerwise(model, optimizer, accumulation_steps=passes, **layerwise)
    for step in range(start, start + steps):
        for turn in range(passes):
            number = mine[min(turn, len(mine) - 1)]
            weight = spoil(step, number) if turn < len(mine) else 0.0
            loss = loss_of(model, step * MICRO + number) * weight
            (loss * world_size / items_of(step)).backward()
        if before_step is not None:
            before_step()
        optimizer.step()
        optimizer.zero_grad()
        if after_step is not None:
            after_step(step)
    if handle is not None:
        handle.remove()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: copy.deepcopy(tensor.detach()) for name, tensor in model.state_dict().items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest entry of each tensor."""
    return max(float((one[k].double() - other[k].double()).abs().max() / other[k].double().abs().max()) for k in other)
