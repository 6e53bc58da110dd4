"""Train a small model layer-wise for some windows, from a file and into a file; print a hash of weights and state.

python layerwise_windows.py START STOP FILE
"""

import hashlib
import sys
from pathlib import Path

import torch
from torch import nn

import featherweight as fw

ACCUMULATION_STEPS = 2


def main(start: int, stop: int, path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 128), nn.Tanh(), nn.Linear(128, 80), nn.LayerNorm(80)).to(torch.bfloat16)
    groups = fw.optim.param_groups(model, rank=40, update_proj_gap=4)
    optimizer = fw.optim.GaLoreAdamW(groups, lr=1e-2, state_bits=8, basis_bits=8)
    if start:
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    with fw.optim.layerwise(model, optimizer, accumulation_steps=ACCUMULATION_STEPS, max_grad_norm=0.5):
        for number in range(start * ACCUMULATION_STEPS, stop * ACCUMULATION_STEPS):
            x = torch.randn(16, 96, generator=torch.Generator().manual_seed(number)).to(torch.bfloat16)
            (model(x).float() - 1).square().mean().backward()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    tensors = [*model.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
    content = b"".join(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors)
    sys.stdout.write(f"{hashlib.sha256(content).hexdigest()}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
