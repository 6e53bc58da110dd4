"""GaLore in a plain PyTorch loop: build the groups, build the optimizer, change nothing else.

python examples/plain_loop.py [--steps 200]
"""

import argparse

import torch
from torch import nn

import featherweight as fw


def main() -> None:
    """Fit a small network to a function of 32 variables and compare the bytes of the optimizer's state with AdamW's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 1))
    groups = fw.optim.param_groups(model, exclude_modules=["4"], rank=16, update_proj_gap=50, scale=1.0)
    optimizer = fw.optim.GaLoreAdamW(groups, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)

    for step in range(steps):
        x = torch.randn(256, 32)
        y = torch.sin(x[:, :4]).prod(dim=1, keepdim=True) + x[:, 4:5] * x[:, 5:6]
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step == 0 or (step + 1) % 50 == 0:
            print(f"step {step + 1:4}  loss {loss.item():.4f}")

    full = fw.optim.AdamW(model.parameters()).state_bytes()
    print(f"optimizer state: {optimizer.state_bytes():,} bytes; AdamW needs {full:,}")
    optimizer.report().print_terminal()


if __name__ == "__main__":
    main()
