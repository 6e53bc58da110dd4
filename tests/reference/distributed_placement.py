"""One of several processes: columns, shares of bases, blocks of codes; argv: where to save, folder, kind, checks."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_cores import CLIPS, Whole, train_codes
from distributed_cores import codes as int8_codes
from distributed_cores import stack as core_stack
from distributed_fsdp2 import Stack, optimizer_for, stack, values, whole
from ranks import COLLECTIVE_TIMEOUT_S
from shared_training import MICRO, loss_of, train
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

import featherweight as fw
from featherweight.distributed.fsdp2 import collectives_of
from featherweight.distributed.run import bytes_at_hand
from featherweight.distributed.whole import whole_weights
from featherweight.optim.sharding import local_of

STEPS = 14
RANK = 3
FOUR_BITS = {"basis_bits": 4, "basis_renorm": True}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "left columns": ({"proj_type": "left"}, {"side": True}),
    "std columns, bases": ({}, {"side": True, "basis": "sharded"}),
    "right bases": ({"proj_type": "right"}, {"basis": "sharded"}),
    "left bases": ({"proj_type": "left"}, {"basis": "sharded"}),
    "std bases of 4 bits": (FOUR_BITS, {"basis": "sharded"}),
    "lazy columns, bases": (
        {"lazy": {"queue_size": 2, "threshold": 0.01}, "moment_policy": "rotate"},
        {"side": True, "basis": "sharded"},
    ),
}
"""Options of the optimizer, and how it lies on the processes."""
CORES = {"left columns": "none", "std columns, bases": "delayed", "right bases": "delayed", "left bases": "projected"}
"""Which of them sum cores in place of gradients, too, and how they clip."""
SAVED = "std columns, bases"


def shard(model: nn.Module, kind: str, place: dict[str, Any], build: Any) -> Any:
    """Shard a model, and return its optimizer."""
    size = 2 if kind == "hsdp" else None
    columns = fw.distributed.left_sided(build(model), size) if place.get("side") else ()
    fw.distributed.shard(model, kind, shard_size=size, columns=columns, basis=place.get("basis", "replicated"))
    return build(model)


def sharded(name: str, kind: str, *, cores: bool = False) -> tuple[Stack, Any]:
    options, place = KINDS[name]
    model = core_stack() if cores else stack()
    return model, shard(model, kind, place, lambda one: optimizer_for(one, **options))


def held(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """What lies where, and whether bytes are those planned."""
    counted = bytes_at_hand(model, optimizer)["optimizer_state"]
    places = {name: tuple(one.placements)[-1] for name, one in model.named_parameters() if isinstance(one, DTensor)}
    layouts = optimizer.layouts.values()
    return {
        "columns": [name for name, one in places.items() if one == Shard(1)],
        "planned": optimizer.state_bytes(),
        "counted": counted,
        "bases": sum(one.basis_bytes() for one in layouts),
        "moments": sum(one.moment_bytes() for one in layouts),
        "report": str(optimizer.report()),
    }


def trained(kind: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    found = {}
    for name in KINDS:
        model, optimizer = sharded(name, kind)
        train(model, optimizer, rank=rank, world_size=size, steps=STEPS)
        found[name] = {"values": values(model), **held(model, optimizer)}
    for name, clip in CORES.items():
        model, optimizer = sharded(name, kind, cores=True)
        train(model, optimizer, rank=rank, world_size=size, steps=STEPS, layerwise=CLIPS[clip])
        found[f"cores, {name}"] = {"values": values(model), **held(model, optimizer)}
    return found


def alone(name: str) -> dict[str, Tensor]:
    """What one process makes of the same."""
    is_core, name = name.startswith("cores, "), name.removeprefix("cores, ")
    model = core_stack() if is_core else stack()
    optimizer = optimizer_for(model, **KINDS[name][0])
    layerwise = {**CLIPS[CORES[name]], "reducer": Whole()} if is_core else None
    train(model, optimizer, steps=STEPS, layerwise=layerwise)
    return values(model)


def traffic(kind: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """What the optimizer sends in five steps; all bases are due in the first and the fifth."""
    found = {}
    for name in ("left columns", "right bases", "left bases", "std columns, bases"):
        for cores in (False, True):
            options, place = KINDS[name]
            model = core_stack() if cores else stack()

            def build(one: nn.Module, options: Any = options) -> Any:
                return optimizer_for(one, **options, stagger=False)

            optimizer, steps = shard(model, kind, place, build), []
            sent = collectives_of(model).traffic
            for step in range(5):
                before = dict(sent.payload_bytes)
                train(
                    model,
                    optimizer,
                    rank=rank,
                    world_size=size,
                    steps=1,
                    start=step,
                    layerwise={} if cores else None,
                )
                steps.append({key: count - before.get(key, 0) for key, count in sent.payload_bytes.items()})
            found[f"cores, {name}" if cores else name] = steps
    return found


def not_finite(kind: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """A NaN in a column of one process: seen by its owner alone, skipped by all."""
    model, optimizer = sharded(SAVED, kind)
    train(model, optimizer, rank=rank, world_size=size, steps=2)
    before = values(model)
    loss_of(model, rank).backward()
    if rank == 1:
        local_of(model.layers[0][2].weight.grad)[0, 0] = float("nan")
    optimizer.step()
    after = values(model)
    return {
        "skipped": optimizer.skipped_steps,
        "stayed": [name for name in after if torch.equal(before[name], after[name])],
    }


def compared(kind: str, rank: int, size: int, folder: Path) -> dict[str, str]:
    """What a comparison says of sound processes in any placement, and of one that has changed a whole basis."""
    from distributed_ddp import refusal

    found = {}
    for name in ("left columns", SAVED, "right bases"):
        model, optimizer = sharded(name, kind)
        train(model, optimizer, rank=rank, world_size=size, steps=2)
        found[name] = refusal(lambda model=model, one=optimizer: fw.distributed.check_replicas(model, one))
    model, optimizer = sharded("left columns", kind)
    train(model, optimizer, rank=rank, world_size=size, steps=2)
    if rank == 1:
        optimizer.state[model.odd.weight]["basis_left"][0, 0] += 1e-9
    found["changed"] = refusal(lambda: fw.distributed.check_replicas(model, optimizer))
    return found


def saved(kind: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """A checkpoint in the middle of an interval, the uninterrupted run, and one that goes on placed otherwise."""
    model, optimizer = sharded(SAVED, kind)
    train(model, optimizer, rank=rank, world_size=size, steps=6)
    fw.distributed.save(folder / "placed", model, optimizer)
    train(model, optimizer, rank=rank, world_size=size, steps=6, start=6)
    return {"values": values(model), "again": continued(kind, rank, size, folder)}


def continued(kind: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """What becomes of the checkpoint: as it was placed, and by rows with whole bases."""
    found = {}
    for what, place in (("placed", KINDS[SAVED][1]), ("rows", {})):
        model = stack()
        optimizer = shard(model, kind, place, lambda one: optimizer_for(one, **KINDS[SAVED][0]))
        fw.distributed.load(folder / "placed", model, optimizer)
        train(model, optimizer, rank=rank, world_size=size, steps=6, start=6)
        found[what] = values(model)
    return found


class Blocks(nn.Module):
    """Cores of 8 x 1024 elements, which are 32 blocks, of 8 x 384, which are 12, and of 8 x 520, which are none."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.middle = nn.Linear(1024, 24, bias=False), nn.Linear(384, 24, bias=False)
        self.odd = nn.Linear(520, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + torch.tanh(self.middle(x[..., :384])) + torch.tanh(self.odd(x[..., :520]))


def blocks(bits: int, dtype: torch.dtype = torch.float32) -> Blocks:
    torch.manual_seed(0)
    model = Blocks().to(dtype)
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    return model


def blocks_optimizer(model: nn.Module, bits: int, gap: int = 4) -> Any:
    groups = [{"params": list(model.named_parameters()), "rank": 8, "proj_type": "left", "state_bits": bits}]
    return fw.optim.GaLoreAdamW(groups, lr=1e-2, update_proj_gap=gap, stagger=False)


def train_blocks(model: nn.Module, optimizer: Any, *, steps: int, start: int = 0, **options: Any) -> None:
    """Train on the same data in every process, so that means over them are exact."""
    with fw.optim.layerwise(model, optimizer, **options):
        for step in range(start, start + steps):
            x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(step))
            model(x.to(next(model.parameters()).dtype)).square().mean().backward()


def state_of(optimizer: Any) -> list[dict[str, Tensor]]:
    return [{key: whole(value) for key, value in one.items()} for one in optimizer.state_dict()["state"].values()]


def codes(kind: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Quantised moments behind left bases, and bfloat16 weights by columns."""
    found: dict[str, Any] = {}
    for bits in (8, 4):
        model = blocks(bits)
        fw.distributed.shard(model, kind, shard_size=2 if kind == "hsdp" else None)
        optimizer = blocks_optimizer(model, bits)
        train_blocks(model, optimizer, steps=10)
        found[f"{bits} bits"] = {"values": values(model), "state": state_of(optimizer), **held(model, optimizer)}
        if bits == 8 and not (folder / "codes").exists():
            fw.distributed.save(folder / "codes", model, optimizer)
    model = blocks(32, torch.bfloat16)
    names = fw.distributed.left_sided(blocks_optimizer(model, 32), 2 if kind == "hsdp" else None)
    fw.distributed.shard(model, kind, shard_size=2 if kind == "hsdp" else None, columns=names)
    optimizer = blocks_optimizer(model, 32)
    train_blocks(model, optimizer, steps=3)
    found["bfloat16"] = {"values": values(model), **held(model, optimizer)}
    return found


def goes_on(kind: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    """The checkpoint of codes, read by any number of processes."""
    model = blocks(8)
    fw.distributed.shard(model, kind, shard_size=2 if kind == "hsdp" else None)
    optimizer = blocks_optimizer(model, 8)
    fw.distributed.load(folder / "codes", model, optimizer)
    return {"state": state_of(optimizer), **held(model, optimizer)}


class Attention(nn.Module):
    """Three projections that read one input, of unequal rows."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(16, 12)
        self.o_proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        mixed = torch.cat([torch.tanh(q[..., :12]) * torch.sigmoid(k) + v, torch.tanh(q[..., 12:])], -1)
        return x + self.o_proj(mixed)


def common_basis(size: int = 1, rank: int = 0, kind: str = "fsdp2") -> dict[str, Tensor]:
    """Weights after training with one basis for weights that read one input, each process with a share of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 16), Attention(), Attention()).double()
    fw.apply(model, fw.CoreGradient(prefer="memory", share_basis=True))
    if size > 1:
        fw.distributed.shard(model, kind, shard_size=2 if kind == "hsdp" else None, basis="sharded")
    names = [f"{name}_proj" for name in "qkvo"]
    groups = fw.optim.param_groups(model, names, min_numel=1, rank=RANK, update_proj_gap=4, proj_type="right")
    reducer = {} if size > 1 else {"reducer": Whole()}
    train(
        model,
        fw.optim.GaLoreAdamW(groups, lr=1e-2),
        rank=rank,
        world_size=size,
        steps=STEPS,
        layerwise={"max_grad_norm": 0.05, **reducer},
    )
    return values(model)


def four_bits(size: int = 1, rank: int = 0, kind: str = "fsdp2") -> dict[str, Any]:
    """Int8 weights after Q-GaLore with bases of four bits, each process with a share of their codes."""
    model = int8_codes()
    if size > 1:
        fw.distributed.shard(model, kind, shard_size=2 if kind == "hsdp" else None, basis="sharded")
    groups = fw.optim.param_groups(model, ["0", "2", "head"], min_numel=1, rank=RANK, update_proj_gap=4)
    optimizer = fw.optim.QGaLoreAdamW(groups, lr=1e-2, state_bits=32)
    reducer = {} if size > 1 else {"reducer": Whole()}
    train_codes(model, optimizer, rank=rank, size=size, steps=10, **reducer)
    return {"weights": whole_weights(model), **held(model, optimizer)}


def methods(kind: str, rank: int, size: int, folder: Path) -> dict[str, Any]:
    return {"common": common_basis(size, rank, kind), "four bits": four_bits(size, rank, kind)}


def refused(kind: str, rank: int, size: int, folder: Path) -> dict[str, str]:
    from distributed_ddp import refusal
    from torch.distributed.fsdp import fully_shard

    found = {"name": refusal(lambda: fw.distributed.shard(stack(), "fsdp2", columns=["no.such.weight"]))}
    found["uneven"] = refusal(lambda: fw.distributed.shard(stack(), "fsdp2", columns=["even.weight"]))
    found["ddp"] = refusal(lambda: fw.distributed.shard(stack(), "ddp", basis="sharded"))
    found["basis"] = refusal(lambda: fw.distributed.shard(stack(), "fsdp2", basis="half"))
    model = stack()
    fw.distributed.shard(model, "fsdp2", columns=["layers.0.0.weight"])
    found["right"] = refusal(lambda: optimizer_for(model, proj_type="right"))
    found["dense"] = refusal(lambda: optimizer_for(model, rank=None))
    own = stack()
    fully_shard(own, shard_placement_fn=lambda one: Shard(int(one is own.odd.weight)))
    fw.distributed.shard(own, "fsdp2")
    found["own"] = refusal(lambda: optimizer_for(own, proj_type="left"))
    return found


def main() -> None:
    torch.set_num_threads(1)
    fw.distributed.start(timeout_s=COLLECTIVE_TIMEOUT_S)
    rank, size = fw.distributed.rank(), fw.distributed.world_size()
    folder, kind, wanted = Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")
    assert MICRO >= size == dist.get_world_size()
    every = (trained, traffic, not_finite, compared, saved, continued, codes, goes_on, methods, refused)
    checks = {check.__name__: check for check in every}
    torch.save({name: checks[name](kind, rank, size, folder) for name in wanted}, f"{sys.argv[1]}-{rank}")
    fw.distributed.stop()


if __name__ == "__main__":
    main()
