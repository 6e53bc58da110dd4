"""One of two processes: InRank on halves of a batch against one process with all of it; argv: rank, store."""

import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import featherweight as fw
from featherweight.methods.inrank import growth_state

METHOD = fw.InRank(
    buffer=4, every=2, warmup=1, init_rank=1, patience=None, freeze_step=7, init="kaiming", growth="product"
)
STEPS = 10


def main() -> None:
    models = runpy.run_path(str(Path(__file__).parent / "causal_models.py"))
    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def ids(step: int) -> torch.Tensor:
        return models["batch"](rows=4, seed=step)["input_ids"]

    alone = models["causal_model"]("llama")
    fw.apply(alone, METHOD)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    torch.distributed.is_initialized = lambda: False  # the twin decides for itself
    for step in range(1, STEPS + 1):
        alone(ids(step), labels=ids(step), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        METHOD.after_step(alone, optimizer, step)
    torch.distributed.is_initialized = torch.distributed.distributed_c10d.is_initialized

    model = models["causal_model"]("llama")
    fw.apply(model, METHOD)
    trained = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(1, STEPS + 1):
        part = ids(step)[2 * rank : 2 * rank + 2]
        trained(part, labels=part, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        before = [id(parameter) for parameter in model.parameters()]
        METHOD.after_step(trained, optimizer, step)
        if [id(parameter) for parameter in model.parameters()] != before:
            trained = DistributedDataParallel(model)  # it holds the parameters that were there when it was made

    worst = max(
        float((one - other).detach().abs().max()) if one.shape == other.shape else float("inf")
        for one, other in zip(model.parameters(), alone.parameters(), strict=True)
    )
    same = growth_state(model).ranks == growth_state(alone).ranks and growth_state(model).is_frozen
    grown = max(growth_state(model).ranks.values())
    mine = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    theirs = mine.clone()
    dist.broadcast(theirs, 0)
    equal = torch.equal(mine, theirs)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(f"worst={worst:.3e} same={same} grown={grown} equal={equal}")


if __name__ == "__main__":
    main()
