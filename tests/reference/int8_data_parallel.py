"""Train int8 weights in one of two processes and print a hash of all weights after each step.

python int8_data_parallel.py RANK FILE
"""

import hashlib
import sys

import torch
import torch.distributed as dist
from torch import nn

import featherweight as fw


def main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 300), nn.Linear(300, 64), nn.LayerNorm(64), nn.Linear(64, 50))
    fw.apply(model, fw.Int8(embeddings=True))
    parallel = nn.parallel.DistributedDataParallel(model, init_sync=False)
    optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=8, update_proj_gap=3), lr=1e-2)
    for step in range(6):
        index = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(2 * step + rank))
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(index).flatten(0, 1), index.flatten()).backward()
        optimizer.step()
        content = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        sys.stdout.write(f"{hashlib.sha256(content).hexdigest()}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), sys.argv[2])
