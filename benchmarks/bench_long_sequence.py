"""Long sequences: bytes and time of a training step with and without MsT, and of the loss alone.

    scripts/bench long_sequence [step|loss|longest|card] [--rounds 5] [--sequence 4096]

1. `step`: forward and backward of a small Llama (hidden 256, 4 layers, vocabulary 32000) on one sequence: seconds in
   alternating rounds, and the tracker's peak.
2. `loss`: the output head and its loss alone, against the plain computation and `F.linear_cross_entropy` of torch.
3. `longest`: the longest sequence in a budget of bytes, by the tracker on fake tensors (no arithmetic is done): two
   lengths are simulated, a third one solved for and simulated again. With checkpointing, the peak is a straight line in
   the number of layers, so models of 2 and 4 layers give that of all. SmolLM2-135M in float32 within 8 GiB, Llama-3-8B
   in bfloat16 within 78 GiB. The optimizer's state is added by its size; host memory of offloaded inputs is left out.
4. `card`: on a GPU, the longest sequence of a Llama of 8B shapes that a step of AdamW with bfloat16 states gets
   through, and tokens/s at 8192 tokens, with recomputation alone, with MsT, and with Liger's kernels if installed.
"""

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measurement import machine, synchronize, take_turns, write_rows
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, masking_utils

import featherweight as fw
from featherweight.nn import offload

SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
GIB = 2**30


@dataclass(frozen=True)
class Setup:
    """How a model is trained."""

    name: str
    method: fw.MsT | None = None
    checkpoint: bool = False
    """Checkpointing of the model's own."""
    layerwise: bool = False
    """Gradients are consumed as soon as they are complete."""


def setups(chunk_size: Any = "auto", head_chunk_size: Any = "auto") -> list[Setup]:
    """Return the recipes from plain to shortest of memory."""
    sizes = {"chunk_size": chunk_size, "head_chunk_size": head_chunk_size}
    return [
        Setup("stock"),
        Setup("stock + checkpointing", checkpoint=True),
        Setup("MsT", fw.MsT(**sizes)),
        Setup("loss in chunks + checkpointing", fw.MsT(**sizes, mlp=False, checkpoint=True)),
        Setup("MsT + checkpointing", fw.MsT(**sizes, checkpoint=True)),
        Setup("MsT + offload", fw.MsT(**sizes, checkpoint="offload")),
        Setup("MsT + checkpointing, layer-wise", fw.MsT(**sizes, checkpoint=True), layerwise=True),
        Setup("MsT + offload, layer-wise", fw.MsT(**sizes, checkpoint="offload"), layerwise=True),
    ]


def build(config: LlamaConfig, dtype: torch.dtype) -> nn.Module:
    """Return a model whose weights have a dtype from the start."""
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def prepare(model: nn.Module, setup: Setup) -> nn.Module:
    """Bring a model into the state of a recipe."""
    model.train()
    if setup.checkpoint:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if setup.method is not None:
        fw.apply(model, setup.method)
    if setup.layerwise:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
    return model


def step(model: nn.Module, tokens: torch.Tensor) -> None:
    """Make a forward and a backward pass; gradients go."""
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    model.zero_grad()


def bench_step(sequence: int, rounds: int) -> list[dict[str, Any]]:
    """Measure seconds and peak of real steps."""
    tokens = torch.randint(32000, (1, sequence), generator=torch.Generator().manual_seed(0))
    chosen = [setup for setup in setups() if "offload" not in setup.name and not setup.layerwise]
    models, peaks = {}, {}
    for setup in chosen:
        torch.manual_seed(0)
        models[setup.name] = prepare(LlamaForCausalLM(LlamaConfig(vocab_size=32000, **SMALL)), setup)
        with fw.measure_memory(models[setup.name]) as memory:
            step(models[setup.name], tokens)
        peaks[setup.name] = memory.peak_bytes
    timings = take_turns({name: (lambda m=model: step(m, tokens)) for name, model in models.items()}, rounds)
    return [
        {
            "what": f"step of {sequence} tokens",
            "setup": name,
            "median_s": round(timing.median_s, 3),
            "spread": round(timing.spread, 3),
            "time_ratio": round(timing.median_s / timings["stock"].median_s, 3),
            "peak_mib": round(peaks[name] / 2**20, 1),
            "peak_ratio": round(peaks[name] / peaks["stock"], 3),
        }
        for name, timing in timings.items()
    ]


def bench_loss(sequence: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the head alone, in float32 and bfloat16."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(sequence, 256, generator=generator).to(dtype).requires_grad_()
        weight = (torch.randn(32000, 256, generator=generator) / 16).to(dtype).requires_grad_()
        labels = torch.randint(32000, (sequence,), generator=generator)
        candidates: dict[str, Callable[[], torch.Tensor]] = {
            "plain": lambda h=hidden, w=weight, y=labels: F.cross_entropy(F.linear(h, w).float(), y),
            "fw.linear_cross_entropy": lambda h=hidden, w=weight, y=labels: fw.linear_cross_entropy(h, w, y),
        }
        if hasattr(nn, "LinearCrossEntropyOptions"):
            options = nn.LinearCrossEntropyOptions()
            candidates["torch F.linear_cross_entropy"] = lambda h=hidden, w=weight, y=labels, o=options: (
                F.linear_cross_entropy(h, w, y, options=o)
            )

        def run(loss: Callable[[], torch.Tensor], tensors: tuple[torch.Tensor, ...] = (hidden, weight)) -> None:
            torch.autograd.grad(loss(), tensors)

        peaks = {}
        for name, loss in candidates.items():
            with fw.measure_memory(nn.Linear(1, 1)) as memory:
                run(loss)
            peaks[name] = memory.peak_bytes
        timings = take_turns({name: (lambda c=loss: run(c)) for name, loss in candidates.items()}, rounds)
        rows += [
            {
                "what": f"loss of {sequence} tokens, {str(dtype).removeprefix('torch.')}",
                "setup": name,
                "median_s": round(timing.median_s, 3),
                "spread": round(timing.spread, 3),
                "time_ratio": round(timing.median_s / timings["plain"].median_s, 3),
                "peak_mib": round(peaks[name] / 2**20, 1),
                "peak_ratio": round(peaks[name] / peaks["plain"], 3),
            }
            for name, timing in timings.items()
        ]
    return rows


def simulated_peak(shape: dict[str, Any], dtype: torch.dtype, setup: Setup, sequence: int) -> int:
    """Return the peak of a step of the whole model; with checkpointing, models of 2 and 4 layers tell it."""
    if not setup.checkpoint and (setup.method is None or not setup.method.checkpoint):
        return peak_of_layers(shape, dtype, setup, sequence)
    two, four = (peak_of_layers({**shape, "num_hidden_layers": n}, dtype, setup, sequence) for n in (2, 4))
    return four + (four - two) // 2 * (shape["num_hidden_layers"] - 4)


def peak_of_layers(shape: dict[str, Any], dtype: torch.dtype, setup: Setup, sequence: int) -> int:
    """Return the tracker's peak of a step on fake tensors, in bytes; host memory of offloaded inputs is not in it."""
    config = LlamaConfig(max_position_embeddings=2**22, **shape)
    with FakeTensorMode():
        model = prepare(build(config, dtype), setup)
        tokens = torch.zeros(1, sequence, dtype=torch.int64)
        # Made before the measurement, host memory is not among what it counts.
        size = (1, sequence, config.hidden_size)
        host = [torch.empty(size, dtype=dtype) for _ in range(config.num_hidden_layers)]
        originals = offload._host_memory, masking_utils.find_packed_sequence_indices
        offload._host_memory = lambda tensor: host.pop()
        # It cannot look at fake position ids and would make an (L, L) mask that a real step does without.
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
        try:
            with fw.memory.StorageTracker(model) as tracker:
                step(model, tokens)
        finally:
            offload._host_memory, masking_utils.find_packed_sequence_indices = originals
    return tracker.peak_bytes


def bench_longest(only: list[str]) -> list[dict[str, Any]]:
    """Solve for the longest sequence of each recipe in a budget."""
    rows = []
    for name, shape, dtype, budget, chosen in (
        ("SmolLM2-135M float32", SMOLLM2, torch.float32, 8 * GIB, setups(2048, 512)),
        ("Llama-3-8B bfloat16", LLAMA_3_8B, torch.bfloat16, 78 * GIB, setups(2048, 1024)),
    ):
        with FakeTensorMode():
            numel = sum(parameter.numel() for parameter in LlamaForCausalLM(LlamaConfig(**shape)).parameters())
        state = 2 * dtype.itemsize * numel
        for setup in chosen:
            if only and setup.name not in only:
                continue
            started = time.perf_counter()
            short, long = 4096, 8192
            low, high = (simulated_peak(shape, dtype, setup, length) for length in (short, long))
            slope = (high - low) / (long - short)
            points = [(long, high + state)]
            while abs(points[-1][1] - budget) > 0.01 * budget and len(points) < 4:
                # The peak may move to another moment, so the solution is simulated, and corrected if need be.
                last_tokens, last_peak = points[-1]
                solved = max(256, int(last_tokens + (budget - last_peak) / slope) // 256 * 256)
                if solved == last_tokens:
                    break
                points.append((solved, simulated_peak(shape, dtype, setup, solved) + state))
                slope = (points[-1][1] - last_peak) / (solved - last_tokens)
            solved, peak = points[-1]
            rows.append(
                {
                    "what": f"{name}, {budget // GIB} GiB with AdamW states",
                    "setup": setup.name,
                    "tokens": solved,
                    "peak_gib": round(peak / GIB, 2),
                    "kib_per_token": round(slope / 1024, 1),
                    "peak_8192_gib": round((high + state) / GIB, 2),
                }
            )
            print(rows[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
    return rows


def bench_card(rounds: int) -> list[dict[str, Any]]:
    """Run real steps of 8B shapes on a GPU."""
    rows = []
    for name, setup, liger in (
        ("recomputation alone", Setup("stock", checkpoint=True), False),
        ("MsT", Setup("MsT", fw.MsT(checkpoint=True)), False),
        ("MsT + offload", Setup("offload", fw.MsT(checkpoint="offload")), False),
        ("Liger + recomputation", Setup("liger", checkpoint=True), True),
    ):
        try:
            model, optimizer = card_model(setup, liger)
        except ImportError:
            print("liger-kernel is not installed: left out")
            continue

        def run(sequence: int, model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> float:
            tokens = torch.randint(128256, (1, sequence), device="cuda")
            synchronize()
            start = time.perf_counter()
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            synchronize()
            return time.perf_counter() - start

        run(8192)
        seconds = sorted(run(8192) for _ in range(rounds))
        longest, sequence = 0, 8192
        while sequence <= 2**20:
            try:
                torch.cuda.reset_peak_memory_stats()
                run(sequence)
            except torch.OutOfMemoryError:
                break
            longest, peak = sequence, torch.cuda.max_memory_allocated()
            sequence += max(4096, sequence // 8 // 4096 * 4096)
        rows.append(
            {
                "what": "Llama-3-8B shapes, bf16 AdamW, batch 1",
                "setup": name,
                "tokens_per_s_8192": round(8192 / seconds[len(seconds) // 2]),
                "longest_tokens": longest,
                "peak_gib": round(peak / GIB, 2),
            }
        )
        print(rows[-1], flush=True)
        del model, optimizer, run
        gc.collect()
        torch.cuda.empty_cache()
    return rows


def card_model(setup: Setup, liger: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model of 8B shapes with random weights on the GPU, and AdamW with bfloat16 states."""
    with torch.device("cuda"):
        model = build(LlamaConfig(max_position_embeddings=2**20, **LLAMA_3_8B), torch.bfloat16)
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model)
    return prepare(model, setup), torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def main() -> None:
    """Run what is asked for and append the rows to results/long_sequence_<what>.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["step", "loss"], help="step, loss, longest, card")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--setups", nargs="*", default=[], help="longest: only these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    benchmarks = {
        "step": lambda: bench_step(arguments.sequence, arguments.rounds),
        "loss": lambda: bench_loss(arguments.sequence, arguments.rounds),
        "longest": lambda: bench_longest(arguments.setups),
        "card": lambda: bench_card(arguments.rounds),
    }
    for what in arguments.what:
        rows = benchmarks[what]()
        for row in rows:
            print("  ".join(f"{key}={value}" for key, value in row.items()))
        if rows:
            print(write_rows(f"long_sequence_{what}", rows))


if __name__ == "__main__":
    main()
