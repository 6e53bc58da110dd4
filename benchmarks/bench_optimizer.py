"""Optimizer speed: one step against torch AdamW and galore-torch, the evenness of steps, the refresh against an SVD.

    scripts/bench optimizer [--model 9m|60m] [--rounds 7]

Three measurements, each in alternating rounds in one process:
1. One optimizer step without a refresh, on the shapes of a Llama with random gradients. Floor: the bytes that AdamW
   must move (read gradient, weight, two moments; write weight, two moments) at the bandwidth of a large copy.
2. Every step over one whole refresh gap of 200 after the first step: p99 / median stands under `spread`, the mean
   against torch AdamW under `ratio`. galore-torch and the version that is not staggered refresh all matrices in one of
   these steps.
3. The basis of a 1024 x 2736 gradient at rank 256 (singular values i^-0.8) against `torch.linalg.svd`.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from measurement import machine, synchronize, take_turns, write_rows
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from featherweight.linalg.basis import fit_left_basis
from featherweight.optim import AdamW, GaLoreAdamW, param_groups

GAP = 200
SHAPES = {
    "9m": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4, "rank": 32},
    "60m": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "rank": 128,
    },
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(name: str) -> tuple[nn.Module, int]:
    """Return a Llama of random weights with random gradients, and the rank d / 4."""
    shape: dict[str, Any] = dict(SHAPES[name])
    rank = shape.pop("rank")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, tie_word_embeddings=False, **shape)).to(DEVICE)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model, rank


def candidates(name: str) -> dict[str, torch.optim.Optimizer]:
    """Return each optimizer with a model of its own, one step old (states and first bases exist)."""
    made: dict[str, torch.optim.Optimizer] = {}
    model, rank = build(name)
    made["torch AdamW foreach"] = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    made["torch AdamW fused"] = torch.optim.AdamW(build(name)[0].parameters(), lr=1e-4, fused=True)
    made["fw AdamW"] = AdamW(build(name)[0].parameters(), lr=1e-4)
    made["fw AdamW 8-bit"] = AdamW(build(name)[0].parameters(), lr=1e-4, state_bits=8)
    made["fw GaLore"] = GaLoreAdamW(param_groups(build(name)[0], rank=rank, update_proj_gap=GAP), lr=1e-4)
    made["fw GaLore 8-bit"] = GaLoreAdamW(
        param_groups(build(name)[0], rank=rank, update_proj_gap=GAP), lr=1e-4, state_bits=8, basis_bits=16
    )
    try:
        from bitsandbytes.optim import AdamW8bit
    except (ImportError, RuntimeError, OSError):
        print("bitsandbytes is not installed: left out (pip install -e '.[bench]')")
    else:
        made["bitsandbytes AdamW8bit"] = AdamW8bit(build(name)[0].parameters(), lr=1e-4)
    try:
        from galore_torch import GaLoreAdamW as OfficialGaLore
    except (ImportError, RuntimeError, OSError):
        print("galore-torch is not installed: left out (pip install -e '.[bench]')")
    else:
        low, rest = param_groups(build(name)[0], rank=rank, update_proj_gap=GAP, scale=0.25, proj_type="std")
        groups = [{**low, "params": [p for _, p in low["params"]]}, {"params": [p for _, p in rest["params"]]}]
        made["galore-torch"] = OfficialGaLore(groups, lr=1e-4, no_deprecation_warning=True)
    for optimizer in made.values():
        optimizer.step()
    return made


def copy_bandwidth() -> float:
    """Bytes per second that a large copy moves, reads and writes counted."""
    source = torch.empty(64 << 20, device=DEVICE)
    target = torch.empty_like(source)
    timing = take_turns({"copy": lambda: target.copy_(source)}, rounds=5)["copy"]
    return 2 * source.nbytes / timing.fastest_s


def bench_step(name: str, rounds: int, inner: int = 3) -> list[dict[str, Any]]:
    """Measure ordinary steps."""
    made = candidates(name)

    def steps(optimizer: torch.optim.Optimizer) -> None:
        for _ in range(inner):
            optimizer.step()

    # Bases were fitted by the first step; the gap is long enough that measured steps refresh at most one matrix in
    # seven.
    for group in (g for o in made.values() for g in o.param_groups):
        if "update_proj_gap" in group:
            group["update_proj_gap"] = 10**9
    for optimizer in made.values():
        for state in optimizer.state.values():
            if "next_refresh" in state:
                state["next_refresh"].fill_(10**9)
    timings = take_turns({key: (lambda o=o: steps(o)) for key, o in made.items()}, rounds)
    base = timings["torch AdamW foreach"].median_s
    numel = sum(p.numel() for group in made["fw AdamW"].param_groups for p in group["params"])
    floor_s = 7 * 4 * numel / copy_bandwidth()
    rows = []
    for key, timing in timings.items():
        optimizer = made[key]
        state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
        rows.append(
            {
                "measurement": "ordinary step",
                "model": name,
                "what": key,
                "median_s": round(timing.median_s / inner, 6),
                "fastest_s": round(timing.fastest_s / inner, 6),
                "slowest_s": round(max(timing.runs_s) / inner, 6),
                "spread": round(timing.spread, 3),
                "ratio": round(timing.median_s / base, 3),
                "to_floor": round(timing.median_s / inner / floor_s, 2),
                "state_bytes": state,
            }
        )
    return rows


def bench_evenness(name: str) -> list[dict[str, Any]]:
    """Time every step of one refresh gap after the first step."""
    rows = []
    means: dict[str, float] = {}
    made = {key: optimizer for key, optimizer in candidates(name).items() if "bit" not in key}
    low = param_groups(build(name)[0], rank=SHAPES[name]["rank"], update_proj_gap=GAP)
    made["fw GaLore, not staggered"] = GaLoreAdamW(low, lr=1e-4, stagger=False)
    made["fw GaLore, not staggered"].step()
    for key, optimizer in made.items():
        times = []
        for _ in range(GAP):
            synchronize()
            start = time.perf_counter()
            optimizer.step()
            synchronize()
            times.append(time.perf_counter() - start)
        times.sort()
        median, p99 = statistics.median(times), times[int(0.99 * len(times))]
        means[key] = statistics.mean(times)
        rows.append(
            {
                "measurement": "all steps of a gap",
                "model": name,
                "what": key,
                "median_s": round(median, 6),
                "fastest_s": round(times[0], 6),
                "slowest_s": round(times[-1], 6),
                "spread": round(p99 / median, 3),
                "ratio": round(means[key] / means["torch AdamW foreach"], 3),
                "to_floor": "",
                "state_bytes": "",
            }
        )
    return rows


def bench_refresh(rounds: int) -> list[dict[str, Any]]:
    """Compare the ways to a basis with the exact SVD, speed and captured energy."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, rank = 1024, 2736, 256
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    grad = ((left * torch.arange(1, rows + 1) ** -0.8) @ right.T).to(DEVICE)
    warm = fit_left_basis(grad, rank, "randomized", generator=generator, power_iterations=0)

    def fit(method: str, **options: Any) -> torch.Tensor:
        return fit_left_basis(grad, rank, method, generator=torch.Generator().manual_seed(1), **options)

    ways = {
        "gram": lambda: fit("gram"),
        "randomized, q=0": lambda: fit("randomized", power_iterations=0),
        "randomized, q=1": lambda: fit("randomized", power_iterations=1),
        "subspace iteration": lambda: fit("subspace_iteration", old=warm),
    }
    timings = take_turns(ways, rounds)
    timings |= take_turns({"torch.linalg.svd": lambda: torch.linalg.svd(grad, full_matrices=False)}, 3, warm_up=0)
    best = grad.T.matmul(torch.linalg.svd(grad, full_matrices=False)[0][:, :rank]).square().sum()
    energies = {key: (grad.T @ way()).square().sum() / best for key, way in ways.items()}
    svd = timings["torch.linalg.svd"].median_s
    return [
        {
            "measurement": "refresh 1024 x 2736, rank 256",
            "model": f"energy {float(energies[key]):.4f}" if key in energies else "energy 1",
            "what": key,
            "median_s": round(timing.median_s, 6),
            "fastest_s": round(timing.fastest_s, 6),
            "slowest_s": round(max(timing.runs_s), 6),
            "spread": round(timing.spread, 3),
            "ratio": round(svd / timing.median_s, 1),
            "to_floor": "",
            "state_bytes": "",
        }
        for key, timing in timings.items()
    ]


def main() -> None:
    """Read the arguments, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="9m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("step", "evenness", "refresh"))
    arguments = parser.parse_args()
    print(machine())
    rows: list[dict[str, Any]] = []
    if arguments.only in (None, "step"):
        rows += bench_step(arguments.model, arguments.rounds)
    if arguments.only in (None, "evenness"):
        rows += bench_evenness(arguments.model)
    if arguments.only in (None, "refresh"):
        rows += bench_refresh(arguments.rounds)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=150).print(table)
    print(f"written to {write_rows('optimizer', rows)}")


if __name__ == "__main__":
    main()
