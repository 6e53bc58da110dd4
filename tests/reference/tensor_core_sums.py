"""One of two processes: layer-wise Tensor-GaLore that exchanges cores; argv: rank, store, target, options as JSON."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

import featherweight as fw
from featherweight.errors import DeviceError

STEPS, GAP = 24, 6


class MeanOverProcesses:
    """A `Reducer` of torch.distributed, with a list of what it has sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    @property
    def world_size(self) -> int:
        return dist.get_world_size()

    def all_reduce(self, tensor: torch.Tensor, group: Mapping[str, Any]) -> None:
        assert not tensor.is_complex()
        self.sent.append(tensor.numel())
        dist.all_reduce(tensor)
        tensor /= self.world_size


PAPER = {"proj_type": "tucker", "residual": None}  # cores can be summed, as nothing needs whole gradients


def build(options: dict[str, Any]) -> tuple[torch.nn.Module, fw.optim.TensorGaLoreAdamW]:
    torch.manual_seed(0)
    model = fw.pde.FNO(n_modes=(6, 6), in_channels=1, out_channels=1, hidden_channels=8, n_layers=2)
    for p in model.parameters():  # in double precision, as Adam turns rounding near zero into steps
        p.data = p.data.to(torch.complex128 if p.is_complex() else torch.float64)
    groups = fw.pde.param_groups(model, min_numel=1, update_proj_gap=GAP, **{"rank": 0.3, **PAPER, **options})
    return model, fw.optim.TensorGaLoreAdamW(groups, lr=1e-2)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.roll(1, 2).square()


def main() -> None:
    rank, store, target, options = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, optimizer = build(options)
    refusals = []
    for trained in (model, torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))):
        try:
            fw.optim.layerwise(trained, optimizer, reducer=None if trained is model else MeanOverProcesses())
        except DeviceError as error:
            refusals.append(str(error))
    reducer = MeanOverProcesses()
    sent = []
    with fw.optim.layerwise(model, optimizer, accumulation_steps=2, reducer=reducer):
        for step in range(STEPS):
            for half in range(2):
                x, y = (one[4 * rank + 2 * half :][:2] for one in batch(step))
                ((model(x) - y).square().mean() / 2).backward()
            sent.append(sum(reducer.sent))
            reducer.sent.clear()
    ranks = [list(layout.plan.ranks) for layout in optimizer.layouts.values() if layout.rank]
    torch.save({"weights": model.state_dict(), "sent": sent, "ranks": ranks, "refusals": refusals}, f"{target}-{rank}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
