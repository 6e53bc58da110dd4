"""One of two processes: Tensor-GaLore on half of each batch, gradients averaged as pairs; argv: rank, store, target."""

import sys

import torch
import torch.distributed as dist

import featherweight as fw


def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = fw.pde.FNO(n_modes=(6, 6), in_channels=1, out_channels=1, hidden_channels=8, n_layers=2)
    for p in model.parameters():  # in double precision, as Adam turns rounding near zero into steps
        p.data = p.data.to(torch.complex128 if p.is_complex() else torch.float64)
    groups = fw.pde.param_groups(model, rank=0.3, min_numel=1, update_proj_gap=10)
    return model, fw.optim.TensorGaLoreAdamW(groups, lr=1e-2)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return x, x.roll(1, 2).square()


def main() -> None:
    rank, store, target = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model, optimizer = build()
    for step in range(30):
        x, y = (one[4 * rank : 4 * rank + 4] for one in batch(step))
        (model(x) - y).square().mean().backward()
        for p in model.parameters():
            pairs = torch.view_as_real(p.grad) if p.is_complex() else p.grad
            dist.all_reduce(pairs)
            pairs /= 2
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), f"{target}-{rank}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
