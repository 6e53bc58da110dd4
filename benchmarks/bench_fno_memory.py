"""Memory of a training step of large Fourier Neural Operators, by category.

`scripts/bench fno_memory` trains a few steps on random data on a GPU and compares the peak with the formulas; `--meta`
prints the formulas alone, on any machine. Default: 256 channels, 128 x 128 modes, 4 layers, batch 1 of 1024 x 1024,
with activation checkpointing for every optimizer, AdamW included.
"""

import argparse
import time
from typing import Any

import torch
from measurement import write_rows

from featherweight.optim import AdamW, LowRankOptimizer, TensorGaLoreAdamW, TensorGRaD, layerwise
from featherweight.pde import FNO, param_groups

OPTIMIZERS = (
    "adamw_16_bytes",
    "adamw",
    "channels_25",
    "channels_25_layerwise",
    "channels_50_8bit",
    "tucker_25",
    "tucker_25_layerwise",
    "tucker_25_8bit",
    "tucker_05",
    "tensorgrad",
)
GIB = 2**30


def main() -> None:
    """Measure, or print the formulas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--modes", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--meta", action="store_true", help="the formulas alone")
    arguments = parser.parse_args()
    rows = [measure(name, arguments) for name in arguments.optimizers.split(",")]
    if not arguments.meta:
        write_rows("fno_memory", rows)


def build_model(arguments: argparse.Namespace) -> FNO:
    """Return the model on its device."""
    with torch.device("meta" if arguments.meta else arguments.device):
        return FNO(
            n_modes=(arguments.modes, arguments.modes),
            in_channels=1,
            out_channels=1,
            hidden_channels=arguments.channels,
            n_layers=arguments.layers,
            activation_checkpointing=True,
        )


def build_optimizer(name: str, model: FNO) -> LowRankOptimizer:
    """Return one of the optimizers that are compared."""
    if name == "adamw":
        return AdamW(model.parameters())
    if name == "adamw_16_bytes":  # the moments of torch.optim.AdamW: two reals for the second, too
        return TensorGaLoreAdamW([{"params": list(model.parameters()), "low_rank": False}], complex_mode="real_pair")
    if name == "tensorgrad":
        return TensorGRaD(param_groups(model, rank=0.20, sparse_ratio=0.05))
    options: dict[str, Any] = {} if name.startswith("channels") else {"proj_type": "tucker", "residual": None}
    rank = {"05": 0.05, "25": 0.25, "50": 0.5}[name.split("_")[1]]
    return TensorGaLoreAdamW(param_groups(model, rank=rank, **options), state_bits=8 if "8bit" in name else 32)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the row of one optimizer; in its peak an out-of-memory error is a result, too."""
    model = build_model(arguments)
    optimizer = build_optimizer(name, model)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    handle = layerwise(model, optimizer) if name.endswith("layerwise") else None
    row: dict[str, Any] = {
        "optimizer": name,
        "shape": f"C{arguments.channels} m{arguments.modes} L{arguments.layers} {arguments.resolution}^2 "
        "B{arguments.batch}",
        "weights_gib": round(weight_bytes / GIB, 3),
        "gradients_gib": round(optimizer.gradient_bytes() / GIB, 3),
        "state_gib": round(optimizer.state_bytes() / GIB, 3),
        "peak_gib": "",
        "refresh_step_s": "",
        "step_s": "",
    }
    if not arguments.meta:
        row |= _train(model, optimizer, arguments)
    if handle is not None:
        handle.remove()
    print(row, flush=True)
    del model, optimizer, handle
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return row


def _train(model: FNO, optimizer: LowRankOptimizer, arguments: argparse.Namespace) -> dict[str, Any]:
    x = torch.randn(arguments.batch, 1, arguments.resolution, arguments.resolution, device=arguments.device)
    is_cuda = x.is_cuda
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    try:
        for _ in range(arguments.steps):
            begin = time.perf_counter()
            (model(x) - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    except torch.OutOfMemoryError:
        return {"peak_gib": "out of memory"}
    peak = round(torch.cuda.max_memory_allocated() / GIB, 3) if is_cuda else ""
    return {"peak_gib": peak, "refresh_step_s": round(times[0], 3), "step_s": round(min(times[1:]), 3)}


if __name__ == "__main__":
    main()
