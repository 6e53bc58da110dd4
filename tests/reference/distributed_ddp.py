"""One of several processes that hold whole models; argv: where to save what was found."""

import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from ranks import COLLECTIVE_TIMEOUT_S
from shared_training import MICRO, STEPS, Net, first_step, net, optimizer_for, train, values

import featherweight as fw
from featherweight.distributed.comm_hook import average_gradients_
from featherweight.distributed.ddp import bit_sum
from featherweight.errors import FeatherweightError, NumericsError
from featherweight.optim.reduce import attached_reducer

SHORT = 12
"""Steps, with two refreshes, of default tests; the slow ones make all of them."""
CLIPS = {
    "delayed": {"clip": "delayed", "max_grad_norm": 0.05},
    "per_tensor": {"clip": "per_tensor", "max_grad_norm": 0.02},
    "norm_growth": {"clip": "norm_growth"},
    "projected": {"clip": "projected", "max_grad_norm": 0.05},
}


def hashes(model: torch.nn.Module) -> list[int]:
    return [bit_sum(tensor) for tensor in model.state_dict().values()]


def _note(seen: list[Any], model: torch.nn.Module, step: int) -> None:
    seen.append(hashes(model))


def replica(kind: str = "GaLoreAdamW", core: bool = True, **options: Any) -> tuple[Net, Any]:
    model = net()
    if core:
        fw.apply(model, fw.CoreGradient(target_modules=["up", "mid", "down"], prefer="memory"))
    if dist.get_rank():  # what a process has built itself does not count
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1.0
    fw.distributed.shard(model, "ddp")
    return model, optimizer_for(model, kind, **options)


def refusal(action: Any) -> str:
    try:
        action()
    except FeatherweightError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def clipped(rank: int, size: int, steps: int) -> dict[str, Any]:
    found = {}
    for name, options in CLIPS.items():
        model, optimizer = replica()
        first_step(model, optimizer)
        seen: list[Any] = []
        note = partial(_note, seen, model)
        train(model, optimizer, rank=rank, world_size=size, steps=steps, layerwise=options, after_step=note)
        found[name] = {"values": values(model), "hashes": seen}
    return found


def ordinary(rank: int, size: int, steps: int) -> dict[str, Any]:
    """Steps that are not layer-wise, with whole gradients and with cores; and the full-rank optimizer, layer-wise."""
    found = {}
    for name, whole in (("whole", True), ("cores", False)):
        model, optimizer = replica(core=False)
        first_step(model, optimizer)
        reducer = attached_reducer(model)
        average = partial(average_gradients_, optimizer, reducer, whole=whole)
        train(model, optimizer, rank=rank, world_size=size, steps=steps, before_step=average)
        found[name] = {"values": values(model), "bytes": reducer.traffic.payload_bytes["all_reduce"]}
    model, optimizer = replica("AdamW")
    train(model, optimizer, rank=rank, world_size=size, steps=steps, layerwise={})
    found["adamw"] = {"values": values(model)}
    return found


def hooked(rank: int, size: int) -> dict[str, Any]:
    """A user's own DistributedDataParallel, with and without the hook."""
    found: dict[str, Any] = {}
    for name in ("plain", "hook"):
        model = net()
        optimizer = optimizer_for(model)
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        if name == "hook":
            state, hook = fw.distributed.core_hook(optimizer)
            wrapped.register_comm_hook(state, hook)
        train(wrapped, optimizer, rank=rank, world_size=size, steps=8)
        found[name] = values(model)
    found["sent"] = state.traffic.payload_bytes["all_reduce"]
    found["shapes"] = dict(state.traffic.shapes)
    return found


def not_finite(rank: int, size: int) -> dict[str, Any]:
    """A NaN of one process in one step: all skip what it touches, all at once."""
    model, optimizer = replica()
    first_step(model, optimizer)
    spoil = lambda step, number: float("nan") if (step, number) == (2, 1) else 1.0  # noqa: E731
    train(model, optimizer, rank=rank, world_size=size, steps=5, layerwise={}, spoil=spoil)
    return {"values": values(model), "skipped": optimizer.skipped_steps}


def disagreement(rank: int, size: int) -> dict[str, Any]:
    """Errors that all processes raise, instead of waiting for each other."""
    found = {}
    model, optimizer = replica()
    with fw.optim.layerwise(model, optimizer):
        tokens = torch.arange(3)
        found["layer"] = refusal(lambda: model(tokens, use_extra=rank == 1).sum().backward())
    model, optimizer = replica()
    with torch.no_grad():
        model.mid.weight[0, 0] += rank * 1e-9
    found["replicas"] = refusal(lambda: fw.distributed.check_replicas(model, optimizer))
    other = torch.nn.Linear(4 + rank, 4)
    found["model"] = refusal(lambda: fw.distributed.shard(other, "ddp"))
    world = fw.distributed.World()
    found["recipe"] = refusal(lambda: world.require_same({"the recipe": f"seed={rank}"}))
    found["few"] = refusal(lambda: world.require_enough(1))

    def fail() -> None:
        raise NumericsError("only here")

    def together() -> None:
        with world.together():
            if rank == 1:
                fail()

    found["together"], found["first"] = refusal(together), refusal(lambda: world.on_first(fail))
    found["result"] = world.on_first(lambda: {"made by": rank})
    wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    found["wrapped"] = refusal(lambda: fw.distributed.shard(wrapped))
    found["hook"] = refusal(lambda: fw.distributed.core_hook(torch.optim.AdamW(other.parameters())))
    return found


def traffic(rank: int, size: int) -> dict[str, Any]:
    """What travels in a step without a refresh."""
    model, optimizer = replica(gap=10)
    first_step(model, optimizer)
    reducer = attached_reducer(model)
    train(model, optimizer, rank=rank, world_size=size, steps=1, layerwise={})
    reducer.traffic.payload_bytes.clear()
    reducer.traffic.shapes.clear()
    calls = reducer.traffic.calls
    train(model, optimizer, rank=rank, world_size=size, steps=1, start=1, layerwise={})
    due = [int(state["next_refresh"]) for state in optimizer.state.values() if "next_refresh" in state]
    sent = reducer.traffic
    return {
        "bytes": sent.payload_bytes["all_reduce"],
        "shapes": dict(sent.shapes),
        "calls": sent.calls - calls,
        "due": due,
        "wire": sent.wire_bytes(size),
    }


class Experts(torch.nn.Module):
    """Two stacked experts, of which a process may use one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0)).double())

    def forward(self, x: torch.Tensor, used: int) -> torch.Tensor:
        return x @ self.weight[used].mT


def experts(rank: int, size: int) -> dict[str, Any]:
    """Process r uses expert r; nobody uses the last one."""
    model = Experts()
    before = values(model)
    fw.distributed.shard(model, "ddp")
    optimizer = fw.optim.GaLoreAdamW([{"params": [("weight", model.weight)], "rank": 2}], lr=1e-2)
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(1)).double()
    with fw.optim.layerwise(model, optimizer):
        for _ in range(3):
            model(x, min(rank, 1)).square().sum().backward()
    return {"values": values(model), "before": before}


def findings(steps: int) -> dict[str, Any]:
    """All that replicas find out; the trainings that are compared with one process make so many steps."""
    rank, size = fw.distributed.rank(), fw.distributed.world_size()
    assert MICRO >= size
    found = {check.__name__: check(rank, size, steps) for check in (clipped, ordinary)}
    return {
        **found,
        **{check.__name__: check(rank, size) for check in (hooked, not_finite, disagreement, traffic, experts)},
    }


def main() -> None:
    torch.set_num_threads(1)
    fw.distributed.start(timeout_s=COLLECTIVE_TIMEOUT_S)
    rank, size = fw.distributed.rank(), fw.distributed.world_size()
    found = {"clipped": clipped(rank, size, STEPS), "not_finite": not_finite(rank, size)}
    torch.save(found, f"{sys.argv[1]}-{rank}")
    fw.distributed.stop()


if __name__ == "__main__":
    main()
