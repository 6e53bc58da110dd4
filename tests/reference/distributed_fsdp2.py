"""One of several processes that hold rows; argv: where to save what was found, a folder for checkpoints."""

import functools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_ddp import refusal
from ranks import COLLECTIVE_TIMEOUT_S
from shared_training import MICRO, loss_of, train
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import featherweight as fw
from featherweight.distributed.fsdp2 import collectives_of
from featherweight.distributed.run import traffic_of
from featherweight.optim.sharding import local_of

STEPS = 14
KINDS: dict[str, dict[str, Any]] = {
    "adamw": {"rank": None},
    "std": {"rank": 3},
    "right": {"rank": 3, "proj_type": "right"},
    "left": {"rank": 3, "proj_type": "left", "weight_decay": 0.1},
    "lazy": {"rank": 3, "proj_type": "right", "lazy": {"queue_size": 2, "threshold": 0.01}, "moment_policy": "rotate"},
    "random": {"rank": 3, "proj_type": "right", "basis_method": "random"},
    "reset": {"rank": 2, "moment_policy": "reset", "basis_method": "svd"},
}


class Stack(nn.Module):
    """Two equal layers, 13 rows (uneven on two processes), and one row (fewer than processes)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16)) for _ in range(2))
        self.odd, self.even = nn.Linear(16, 13), nn.Linear(13, 16)
        self.row = nn.Linear(16, 1)

    def forward(self, tokens: Tensor, depth: int = 2, use_row: bool = True) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers[:depth]:
            x = x + layer(x)
        x = x + self.even(torch.tanh(self.odd(x)))
        return x + torch.sigmoid(self.row(x)) if use_row else x


SAVED = ("std", "left", "lazy", "adamw")
"""Kinds of which checkpoints are written."""


def stack(dtype: torch.dtype = torch.float64) -> Stack:
    torch.manual_seed(0)
    return Stack().to(dtype)


def optimizer_for(model: nn.Module, rank: int | None = 3, **options: Any) -> Any:
    if rank is None:
        return fw.optim.AdamW(model.named_parameters(), lr=1e-2, **options)
    keys = {"rank": rank, "update_proj_gap": 4, **options}
    groups = fw.optim.param_groups(model, ["0", "2", "odd", "even"], min_numel=1, **keys)
    return fw.optim.GaLoreAdamW(groups, lr=1e-2)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().clone() if isinstance(tensor, DTensor) else tensor.detach().clone()


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def sharded(**options: Any) -> tuple[Stack, Any]:
    model = stack()
    if dist.get_rank():  # what a process has built itself does not count
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1.0
    fw.distributed.shard(model, "fsdp2")
    return model, optimizer_for(model, **options)


def trained(rank: int, size: int) -> dict[str, Any]:
    found = {}
    for name, options in KINDS.items():
        model, optimizer = sharded(**options)
        assert all(isinstance(one, DTensor) for one in model.parameters())
        train(model, optimizer, rank=rank, world_size=size, steps=STEPS)
        found[name] = {"values": values(model), "bytes": optimizer.state_bytes()}
    return found


def traffic(rank: int, size: int) -> dict[str, Any]:
    """What the optimizer sends in steps without and with refreshes."""
    found = {}
    for side in ("right", "left"):
        model, optimizer = sharded(rank=3, proj_type=side, stagger=False)
        sent = collectives_of(model).traffic
        steps = []
        for step in range(5):
            before = dict(sent.payload_bytes)
            train(model, optimizer, rank=rank, world_size=size, steps=1, start=step)
            steps.append({kind: count - before.get(kind, 0) for kind, count in sent.payload_bytes.items()})
        found[side] = steps
    return found


def not_finite(rank: int, size: int) -> dict[str, Any]:
    """A NaN in a row of one process: seen by its owner alone, skipped by all."""
    model, optimizer = sharded()
    train(model, optimizer, rank=rank, world_size=size, steps=2)
    before = values(model)
    loss_of(model, rank).backward()
    if rank == 1:
        local_of(model.layers[0][0].weight.grad)[0, 0] = float("nan")
    optimizer.step()
    after = values(model)
    stayed = [name for name in after if torch.equal(before[name], after[name])]
    return {"skipped": optimizer.skipped_steps, "stayed": stayed}


def saved(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """A checkpoint in the middle of an interval, and what the uninterrupted run comes to."""
    found = {}
    for name in SAVED:
        model, optimizer = sharded(**KINDS[name])
        train(model, optimizer, rank=rank, world_size=size, steps=6)
        fw.distributed.save(folder / name, model, optimizer)
        state = optimizer.state_dict()["state"]
        parts = [value for one in state.values() for value in one.values() if isinstance(value, DTensor)]
        train(model, optimizer, rank=rank, world_size=size, steps=6, start=6)
        other, fresh = sharded(**KINDS[name])
        fw.distributed.load(folder / name, other, fresh)
        train(other, fresh, rank=rank, world_size=size, steps=6, start=6)
        one, two = values(model), values(other)
        found[name] = {
            "values": one,
            "resumed": all(torch.equal(one[key], two[key]) for key in one),
            "parts": len(parts),
        }
    return found


def disagreement(rank: int, size: int) -> dict[str, Any]:
    """What only process 1 uses: a weight beside layers, a layer, and a weight of a model that sums cores."""
    tokens, found = torch.arange(3), {}
    for what, words in (("weight", {"use_row": rank == 1}), ("layer", {"depth": 1 + rank})):
        model, optimizer = sharded()

        def step(model: Any = model, optimizer: Any = optimizer, words: Any = words) -> None:
            model(tokens, **words).square().sum().backward()
            optimizer.step()

        found[what] = refusal(step)
    model = stack()
    fw.apply(model, fw.CoreGradient(target_modules=["0", "2", "odd", "even"], prefer="memory"))
    fw.distributed.shard(model, "fsdp2")
    with fw.optim.layerwise(model, optimizer_for(model)):
        found["cores"] = refusal(lambda: model(tokens, use_row=rank == 1).square().sum().backward())
    return found


def several(rank: int, size: int) -> list[dict[str, int]]:
    """What three models have sent that a process trains in turn."""
    models = [sharded(), sharded()]
    own = stack()  # groups of the user's own, each with a mesh of its own
    for layer in [*own.layers, own]:
        fully_shard(layer, reshard_after_forward=True)
    fw.distributed.shard(own, "fsdp2")
    models.append((own, optimizer_for(own)))
    for step in range(2):
        for model, optimizer in models:
            train(model, optimizer, rank=rank, world_size=size, steps=1, start=step)
    return [{words: sum(one.payload_bytes.values()) for words, one in sent_by(model).items()} for model, _ in models]


def sent_by(model: nn.Module) -> dict[str, Any]:
    """What a model has sent, but for the means of all, which an ordinary step of rows does not need."""
    return {words: one for words, one in traffic_of(model).items() if words != "sums of all"}


class Narrow(nn.Module):
    """Two rows, two columns: fewer than three processes; behind bases of one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.thin = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        self.embed = nn.Embedding(20, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return x + self.thin(torch.tanh(self.few(x)))


def narrow_training(rank: int = 0, size: int = 1) -> dict[str, Tensor]:
    """Weights after ten steps, behind right and left bases, of rows that some processes have none of."""
    found = {}
    for side in ("right", "left"):
        torch.manual_seed(0)
        model = Narrow().double()
        fw.distributed.shard(model, "fsdp2")
        keys = {"rank": 1, "update_proj_gap": 4, "proj_type": side}
        groups = fw.optim.param_groups(model, ["few", "thin"], min_numel=1, **keys)
        train(model, fw.optim.GaLoreAdamW(groups, lr=1e-2), rank=rank, world_size=size, steps=10)
        found |= {f"{side} {name}": tensor for name, tensor in values(model).items()}
    return found


def torchs_own(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """State dicts by the helpers of torch.distributed.checkpoint, as accelerate and torchtitan use them."""
    from torch.distributed.checkpoint import state_dict as helpers

    model, optimizer = sharded(**KINDS["std"])
    train(model, optimizer, rank=rank, world_size=size, steps=6)
    steps = [int(state["step"]) for state in optimizer.state.values()]
    dcp.save(both(helpers, model, optimizer), checkpoint_id=str(folder / "torchs"))
    counted = steps == [int(state["step"]) for state in optimizer.state.values()]
    train(model, optimizer, rank=rank, world_size=size, steps=6, start=6)
    return {"counted": counted, "whole": values(model), "resumed": of_torchs_own(rank, size, folder)}


def both(helpers: Any, model: nn.Module, optimizer: Any) -> dict[str, Any]:
    found = {"model": helpers.get_model_state_dict(model)}
    return {**found, "optimizer": helpers.get_optimizer_state_dict(model, optimizer)}


def of_torchs_own(rank: int, size: int, folder: Path) -> dict[str, Tensor]:
    """What any number of processes makes of it."""
    from torch.distributed.checkpoint import state_dict as helpers

    model, optimizer = sharded(**KINDS["std"])
    state = both(helpers, model, optimizer)
    dcp.load(state, checkpoint_id=str(folder / "torchs"), no_dist=size == 1)
    helpers.set_model_state_dict(model, state["model"])
    helpers.set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"])
    train(model, optimizer, rank=rank, world_size=size, steps=6, start=6)
    return values(model)


def eight_bits(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Quantised moments of rows: whole blocks on each process, saved as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256, bias=False), nn.Linear(256, 256, bias=False))
    fw.distributed.shard(model, "fsdp2")
    groups = [{"params": list(model.named_parameters()), "rank": 16, "proj_type": "right", "state_bits": 8}]
    optimizer = fw.optim.GaLoreAdamW(groups, lr=1e-3)
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(rank))
    model(x).square().sum().backward()
    optimizer.step()
    fw.distributed.save(folder / "eight", model, optimizer)
    state = optimizer.state_dict()["state"]
    codes = {number: whole(one["exp_avg_codes"]) for number, one in state.items()}
    return {"codes": codes, "bytes": optimizer.state_bytes()}


def refused(rank: int, size: int) -> dict[str, Any]:
    model = stack()
    fw.distributed.shard(model, "fsdp2")
    found = {"copies": refusal(lambda: fw.distributed.shard(stack(), "hsdp", shard_size=3))}
    groups = fw.optim.param_groups(model, ["odd"], min_numel=1, rank=3)
    found["Fira"] = refusal(lambda: fw.optim.Fira(groups, lr=1e-2))
    found["min_memory"] = refusal(lambda: optimizer_for(model, 3, proj_type="min_memory"))
    found["full"] = refusal(lambda: optimizer_for(model, 3, proj_type="full"))
    found["ddp"] = refusal(lambda: fw.distributed.shard(model, "ddp"))
    odd = nn.Sequential(nn.Linear(64, 129, bias=False))
    fw.distributed.shard(odd, "fsdp2")
    found["blocks"] = refusal(lambda: fw.optim.AdamW(odd.named_parameters(), lr=1e-3, state_bits=8))
    flat = FullyShardedDataParallel(nn.Sequential(nn.Linear(16, 16)), device_id=torch.device("cpu"))
    found["FSDP 1"] = refusal(lambda: fw.distributed.shard(flat, "fsdp2"))
    found["flattened"] = refusal(lambda: fw.optim.GaLoreAdamW(flat.parameters(), lr=1e-3, rank=4))
    for what, style in (("columns", ColwiseParallel()), ("rows", RowwiseParallel())):
        parallel = nn.Sequential(nn.Linear(16, 16))
        parallelize_module(parallel, init_device_mesh("cpu", (size,)), {"0": style})
        found[f"tensor parallel, {what}"] = refusal(functools.partial(fw.distributed.shard, parallel, "fsdp2"))
    own = nn.Sequential(nn.Linear(16, 16))
    fully_shard(own)
    found["unknown"] = refusal(lambda: fw.optim.AdamW(own.parameters(), lr=1e-3))
    fw.distributed.shard(own, "fsdp2")
    found["own"] = refusal(lambda: fw.optim.AdamW(own.parameters(), lr=1e-3))
    return found


def continued(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """What another number of processes makes of the checkpoints."""
    found = {}
    for name in SAVED:
        model, optimizer = sharded(**KINDS[name])
        fw.distributed.load(folder / name, model, optimizer)
        train(model, optimizer, rank=rank, world_size=size, steps=6, start=6)
        found[name] = values(model)
    return found


def main() -> None:
    torch.set_num_threads(1)
    fw.distributed.start(timeout_s=COLLECTIVE_TIMEOUT_S)
    rank, size, folder = fw.distributed.rank(), fw.distributed.world_size(), Path(sys.argv[2])
    assert MICRO >= size
    if len(sys.argv) > 3:
        found: dict[str, Any] = {"trained": trained(rank, size), "continued": continued(rank, size, folder)}
        found["torchs_own"] = of_torchs_own(rank, size, folder)
        found["narrow"] = narrow_training(rank, size)
    else:
        checks = (trained, traffic, not_finite, refused, several, disagreement)
        found = {check.__name__: check(rank, size) for check in checks}
        found["narrow"] = narrow_training(rank, size)
        found["torchs_own"] = torchs_own(rank, size, folder)
        found["saved"], found["eight_bits"] = saved(rank, size, folder), eight_bits(rank, size, folder)
    torch.save(found, f"{sys.argv[1]}-{rank}")
    fw.distributed.stop()


if __name__ == "__main__":
    main()
