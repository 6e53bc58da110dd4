"""One of two processes: a small MsT model under DDP or FSDP2 against one process; argv: rank, store, kind, options."""

import copy
import json
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import featherweight as fw


def main() -> None:
    models = runpy.run_path(str(Path(__file__).parent / "causal_models.py"))
    rank, store, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    model = models["causal_model"]("llama")
    parts = [models["batch"](seed=seed) for seed in range(2)]
    # Each process divides by half of all counted tokens, because both frameworks average over processes.
    count = sum(int((part["labels"][:, 1:] != -100).sum()) for part in parts) / 2
    stock = copy.deepcopy(model)
    for part in parts:
        (stock(**part, use_cache=False, num_items_in_batch=torch.tensor(count)).loss / 2).backward()
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}

    fw.apply(model, fw.MsT(chunk_size=8, head_chunk_size=5, **json.loads(sys.argv[4])))
    if kind == "ddp":
        trained = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        for layer in model.model.layers:
            fully_shard(layer)
        trained = fully_shard(model)
    trained(**parts[rank], use_cache=False, num_items_in_batch=torch.tensor(count)).loss.backward()

    worst = 0.0
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.full_tensor() if kind == "fsdp2" else parameter.grad
        scale = max(1.0, float(expected[name].abs().max()))
        worst = max(worst, float((gradient - expected[name]).abs().max()) / scale)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(f"worst={worst:.3e}")


if __name__ == "__main__":
    main()
