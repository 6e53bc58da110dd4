"""Core gradients: tokens per second of whole training steps against torch AdamW, galore-torch and our own plain path.

    scripts/bench core_gradient [--hidden 512] [--dtype fp32] [--accumulation 1] [--rounds 5] [--tokens 1024]
    scripts/bench core_gradient --all          # both sizes, both dtypes, accumulation 1 and 4: an hour on two cores
    scripts/bench core_gradient --even         # the time of every step over one gap, refreshes among them
    scripts/bench core_gradient --parts        # where the time of one layer goes

1. Whole steps (forward, backward, update) of a Llama of 8 layers with random weights, in alternating rounds in one
   process, no refresh among them. The ratio is torch fused AdamW / candidate, of the fastest rounds (what the machine
   can do undisturbed) and of the medians; the spread is that of the candidate's rounds. The vocabulary is that of
   LLaMA, 32000: its head and embedding run as in every other optimizer, and take a good part of a step. Beside it
   the ratio that the arithmetic allows (`flop_bound`): FLOPs of matrix products and attention, all else free.
2. With --even: p99 / median of the steps of one refresh gap, staggered, and their mean against AdamW. On a CPU in
   seconds of the processor, and best with OMP_NUM_THREADS=1: a busy machine makes single steps of any optimizer slow.
3. With --parts: one layer's matrices, forward and backward, with the gradient and with the core.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measurement import machine, synchronize, take_turns, write_rows
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.linalg.random import keyed_generator, random_orthonormal
from featherweight.nn.projected_linear import projected_linear
from featherweight.optim import GaLoreAdamW, layerwise, param_groups

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FFN = {512: 1376, 1024: 2736}
NEVER, LAYERS, VOCAB, SEQ_LEN = 10**6, 8, 32000, 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(hidden: int, dtype: torch.dtype) -> nn.Module:
    """Return a Llama of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=FFN[hidden],
        num_hidden_layers=LAYERS,
        num_attention_heads=hidden // 64,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(DEVICE, dtype)


def official_galore(model: nn.Module, rank: int) -> torch.optim.Optimizer | None:
    """Return galore-torch's optimizer, or None where the package is missing."""
    try:
        from galore_torch import GaLoreAdamW as OfficialGaLore
    except (ImportError, RuntimeError, OSError):
        print("galore-torch is not installed: left out (pip install -e '.[bench]')")
        return None
    low, rest = param_groups(model, rank=rank, update_proj_gap=NEVER, scale=0.25, proj_type="std")
    groups = [{**low, "params": [p for _, p in low["params"]]}, {"params": [p for _, p in rest["params"]]}]
    return OfficialGaLore(groups, lr=1e-4, no_deprecation_warning=True)


def build_step(name: str, hidden: int, dtype: torch.dtype, tokens: int, accumulation: int) -> Callable[[], None] | None:
    """Return a function that makes one optimizer step of a candidate with a model of its own."""
    model = build_model(hidden, dtype)
    kind, _, share = name.partition(" d/")
    rank = hidden // int(share or 4)
    optimizer: torch.optim.Optimizer | None
    if kind == "torch AdamW fused":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    elif kind == "torch AdamW foreach":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    elif kind == "galore-torch":
        optimizer = official_galore(model, rank)
    else:
        side = "right" if "right" in kind else "std"
        if "core" in kind:
            fw.apply(model, fw.CoreGradient())
        options = {"rank": rank, "update_proj_gap": NEVER, "proj_type": side}
        optimizer = GaLoreAdamW(param_groups(model), lr=1e-4, stochastic_rounding="nearest" not in kind, **options)
        if "core" in kind:
            limit = math.inf if "norm" in kind else None  # the norm is estimated, or nothing needs it
            layerwise(model, optimizer, accumulation_steps=accumulation, max_grad_norm=limit)
    if optimizer is None:
        return None
    rows = torch.randint(0, VOCAB, (tokens // SEQ_LEN, SEQ_LEN), generator=keyed_generator(0)).to(DEVICE)

    def step() -> None:
        for _ in range(accumulation):
            (model(rows, labels=rows).loss / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    for state in optimizer.state.values():
        if "next_refresh" in state:
            state["next_refresh"].fill_(NEVER)
    return step


def flop_bound(name: str, hidden: int, tokens: int, accumulation: int) -> float:
    """Return the FLOPs of a step of AdamW over those of a candidate: products with weights, attention, bases."""
    kind, _, share = name.partition(" d/")
    shapes = LAYERS * [*[(hidden, hidden)] * 4, *[(FFN[hidden], hidden)] * 2, (hidden, FFN[hidden])]
    size, count = sum(m * n for m, n in shapes), tokens * accumulation
    whole = count * (6 * (size + VOCAB * hidden) + 12 * LAYERS * SEQ_LEN * hidden)
    if not share:
        return 1.0
    rank = hidden // int(share)
    twice = 2 * rank * size  # a projection of all matrices, or a way back
    if "core" not in kind:
        return whole / (whole + 2 * twice)
    cores = 2 * count * rank * sum(m + n for m, n in shapes)
    return whole / (whole - 2 * count * size + cores + twice)


CANDIDATES = [
    "torch AdamW fused",
    "torch AdamW foreach",
    "galore-torch d/4",
    "fw GaLore d/4",
    "fw core d/4",
    "fw core with norm d/4",
    "fw core to nearest d/4",
    "fw core right d/4",
    "fw core d/8",
    "fw core right d/8",
]


def bench_steps(hidden: int, dtype: str, tokens: int, accumulation: int, rounds: int) -> list[dict[str, Any]]:
    """Time whole steps; return a row for each candidate."""
    made = {name: build_step(name, hidden, DTYPES[dtype], tokens, accumulation) for name in CANDIDATES}
    timings = take_turns({name: step for name, step in made.items() if step is not None}, rounds)
    base = timings["torch AdamW fused"]
    count = tokens * accumulation
    facts = {"hidden": hidden, "dtype": dtype, "tokens": tokens, "accumulation": accumulation}
    return [
        {
            "name": name,
            **facts,
            "tokens_per_s": round(count / timing.fastest_s),
            "ratio_fastest": round(base.fastest_s / timing.fastest_s, 3),
            "ratio_median": round(base.median_s / timing.median_s, 3),
            "flop_bound": round(flop_bound(name, hidden, tokens, accumulation), 3),
            "spread": round(timing.spread, 3),
        }
        for name, timing in timings.items()
    ]


def bench_even(hidden: int, tokens: int, gap: int = 50) -> list[dict[str, Any]]:
    """Time every step of two gaps after the first one, refreshes among them, beside AdamW's steps in turn."""
    model = build_model(hidden, torch.float32)
    fw.apply(model, fw.CoreGradient())
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-4, rank=hidden // 4, update_proj_gap=gap)
    layerwise(model, optimizer)
    adamw = build_step("torch AdamW fused", hidden, torch.float32, tokens, 1)
    assert adamw is not None
    rows = torch.randint(0, VOCAB, (tokens // SEQ_LEN, SEQ_LEN), generator=keyed_generator(0)).to(DEVICE)
    seconds: dict[str, list[float]] = {"core": [], "adamw": []}
    clock = time.process_time if DEVICE == "cpu" else time.perf_counter
    for _ in range(2 * gap + 2):
        for name, function in (("core", lambda: model(rows, labels=rows).loss.backward()), ("adamw", adamw)):
            synchronize()
            start = clock()
            function()
            synchronize()
            seconds[name].append(clock() - start)
    result = []
    for name, all_of in seconds.items():
        counted = sorted(all_of[2:])
        result.append(
            {
                "name": name,
                "hidden": hidden,
                "gap": gap,
                "p99_over_median": round(counted[int(0.99 * len(counted))] / statistics.median(counted), 3),
                "mean_ratio": round(statistics.median(sorted(seconds["adamw"][2:])) / statistics.mean(counted), 3),
            }
        )
    return result


class _Discard:
    """A sink that computes cores and drops them."""

    def __init__(self, left: torch.Tensor | None, right: torch.Tensor | None) -> None:
        self.left, self.right = left, right

    def input_test(self) -> torch.Tensor | None:
        return self.right

    def version(self) -> int:
        return 0

    def add(self, left_TM: torch.Tensor, right_TN: torch.Tensor) -> None:
        assert self.left is not None
        (left_TM @ self.left).mT @ right_TN

    def add_thin(self, left_TM: torch.Tensor, thin_TK: torch.Tensor, version: int) -> None:
        left_TM.mT @ thin_TK


def bench_parts(hidden: int, dtype: str, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Time forward and backward of one linear layer with the gradient and with the core, against the FLOPs."""
    result = []
    for rows, columns in ((hidden, hidden), (FFN[hidden], hidden), (hidden, FFN[hidden])):
        weight = nn.Parameter(torch.randn(rows, columns, dtype=DTYPES[dtype], device=DEVICE))
        x = torch.randn(tokens, columns, dtype=DTYPES[dtype], device=DEVICE, requires_grad=True)
        upstream = torch.randn(tokens, rows, dtype=DTYPES[dtype], device=DEVICE)
        rank = hidden // 4
        bases = {n: random_orthonormal(n, rank, generator=keyed_generator(0)).to(x) for n in {rows, columns}}
        left, right = _Discard(bases[rows], None), _Discard(None, bases[columns])

        def full(weight: Any = weight, x: Any = x, upstream: Any = upstream) -> None:
            torch.autograd.grad(nn.functional.linear(x, weight), [x, weight], upstream)

        def core(sink: Any, weight: Any = weight, x: Any = x, upstream: Any = upstream) -> None:
            torch.autograd.grad(projected_linear(x, weight, None, sink), [x, weight], upstream)

        timings = take_turns(
            {"gradient": full, "left": lambda s=left, c=core: c(s), "right": lambda s=right, c=core: c(s)}, rounds
        )
        thin = 2 * rank * (rows + columns) / (2 * rows * columns)
        for name, timing in timings.items():
            result.append(
                {
                    "name": name,
                    "shape": f"{rows} x {columns}",
                    "dtype": dtype,
                    "ratio_fastest": round(timings["gradient"].fastest_s / timing.fastest_s, 3),
                    "ratio_of_flops": 1.0 if name == "gradient" else round(3 / (2 + thin), 3),
                }
            )
    return result


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, choices=list(FFN), default=512)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--even", action="store_true")
    parser.add_argument("--parts", action="store_true")
    arguments = parser.parse_args()
    print(machine())
    if arguments.even:
        rows = bench_even(arguments.hidden, arguments.tokens)
        write_rows("core_gradient_even", rows)
        print_rows(rows)
    elif arguments.parts:
        rows = bench_parts(arguments.hidden, arguments.dtype, arguments.tokens, max(arguments.rounds, 20))
        write_rows("core_gradient_parts", rows)
        print_rows(rows)
    else:
        cases = [(arguments.hidden, arguments.dtype, arguments.accumulation)]
        if arguments.all:
            cases = list(itertools.product(FFN, DTYPES, (1, 4)))
        for hidden, dtype, accumulation in cases:
            rows = bench_steps(hidden, dtype, arguments.tokens, accumulation, arguments.rounds)
            write_rows("core_gradient", rows)
            print_rows(rows)


if __name__ == "__main__":
    main()
