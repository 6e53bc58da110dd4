"""Long sequences: bytes, time and losses of training with and without MsT, and of its parts against other libraries.

    scripts/bench long_sequence [step|loss|mlp|curve|longest|plot|card ...] [--rounds 5] [--sequence 4096]

1. `step`: forward and backward of a small Llama (hidden 256, 4 layers, vocabulary 32000) on one sequence: seconds in
   alternating rounds, and the tracker's peak.
2. `loss`, `mlp`: the output head with its loss, and a feed-forward layer, against the plain computation, torch's
   `F.linear_cross_entropy` and Liger's. Without a GPU, Liger's loss runs in Triton's interpreter (TRITON_INTERPRET=1):
   its bytes and its error mean something there, its time does not. Its tiled layer runs with torch's activation.
3. `curve`: 200 steps of AdamW on the standard library's text, a byte-level Llama of hidden 256 and 4 layers.
4. `longest`: the longest sequence in a budget of bytes, by simulation (see long_sequence_simulation.py): SmolLM2-135M
   in float32 within 8 GiB, Llama-3-8B in bfloat16 within 78 GiB. The optimizer's state is added by its size.
5. `plot`: docs/images/long_sequence.png from the rows of `longest` and `curve`.
6. `card`: on a GPU, the longest sequence of a Llama of 8B shapes that a training step gets through, and tokens/s at
   8192 tokens: recomputation alone, MsT, and Liger's kernels if installed. `--smoke` runs its code on small shapes.
"""

import argparse
import csv
import gc
import os
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from long_sequence_simulation import (
    GIB,
    LLAMA_3_8B,
    SMOLLM2,
    Setup,
    build,
    longest_sequence,
    numel,
    prepare,
    setups,
    step,
)
from measurement import RESULTS, Timing, machine, synchronize, take_turns, write_rows
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw

SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
IMAGE = Path(__file__).parent.parent / "docs" / "images" / "long_sequence.png"
CURVES = ["stock", "MsT", "MsT tokenwise + checkpointing"]


def timing_row(what: str, name: str, timing: Timing, plain: Timing, peaks: dict[str, int], base: str) -> dict[str, Any]:
    """Return what is said of one candidate beside the plain one."""
    return {
        "what": what,
        "setup": name,
        "median_s": round(timing.median_s, 3),
        "spread": round(timing.spread, 3),
        "time_ratio": round(timing.median_s / plain.median_s, 3),
        "peak_mib": round(peaks[name] / 2**20, 1),
        "peak_ratio": round(peaks[name] / peaks[base], 3),
    }


def bench_step(sequence: int, rounds: int, only: list[str]) -> list[dict[str, Any]]:
    """Measure seconds and peak of real steps."""
    tokens = torch.randint(32000, (1, sequence), generator=torch.Generator().manual_seed(0))
    chosen = [setup for setup in setups() if "offload" not in setup.name and not setup.layerwise]
    chosen.append(Setup("MsT tokenwise", fw.MsT(tokenwise=True)))
    chosen = [setup for setup in chosen if not only or setup.name in only]
    models, peaks = {}, {}
    for setup in chosen:
        torch.manual_seed(0)
        models[setup.name] = prepare(LlamaForCausalLM(LlamaConfig(vocab_size=32000, **SMALL)), setup)
        with fw.measure_memory(models[setup.name]) as memory:
            step(models[setup.name], tokens)
        peaks[setup.name] = memory.peak_bytes
    wall: dict[str, list[float]] = {name: [] for name in models}
    cpu: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):  # the measurement above was the warm-up
        for name, model in models.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            step(model, tokens)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    stock, stock_cpu = Timing(wall["stock"]), Timing(cpu["stock"])
    rows = []
    for name in models:
        row = timing_row(f"step of {sequence} tokens", name, Timing(wall[name]), stock, peaks, "stock")
        # On a machine that others use too, seconds of the processor say more than seconds of the clock.
        ratio = Timing(cpu[name]).median_s / stock_cpu.median_s
        rows.append({**row, "cpu_ratio": round(ratio, 3), "cpu_spread": round(Timing(cpu[name]).spread, 3)})
    return rows


def liger_loss() -> Callable[..., torch.Tensor] | None:
    """Return Liger's fused loss, or None where it is not installed or cannot run."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        print("Liger's loss is left out: no GPU, and TRITON_INTERPRET=1 is not set")
        return None
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        print("liger-kernel is not installed: left out")
        return None
    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight, labels: loss(weight, hidden, labels)


def bench_loss(sequence: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the head alone, in float32 and bfloat16: time, peak, and the error of its gradient against float64."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(sequence, 256, generator=generator).to(dtype).requires_grad_()
        weight = (torch.randn(32000, 256, generator=generator) / 16).to(dtype).requires_grad_()
        labels = torch.randint(32000, (sequence,), generator=generator)
        candidates: dict[str, Callable[..., torch.Tensor]] = {
            "plain": lambda h, w, y: F.cross_entropy(F.linear(h, w).float(), y),
            "fw.linear_cross_entropy": fw.linear_cross_entropy,
        }
        if hasattr(nn, "LinearCrossEntropyOptions"):
            options = nn.LinearCrossEntropyOptions()
            candidates["torch F.linear_cross_entropy"] = lambda h, w, y, o=options: F.linear_cross_entropy(
                h, w, y, options=o
            )
        slow = {}
        if (peer := liger_loss()) is not None:
            (candidates if torch.cuda.is_available() else slow)["Liger"] = peer
        wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
        exact = torch.autograd.grad(F.cross_entropy(F.linear(*wide), labels), wide)[1]

        def run(loss: Callable[..., torch.Tensor], h: Any = hidden, w: Any = weight, y: Any = labels) -> Any:
            return torch.autograd.grad(loss(h, w, y), (h, w))

        peaks, errors = {}, {}
        for name, loss in {**candidates, **slow}.items():
            with fw.measure_memory(nn.Linear(1, 1)) as memory:
                gradient = run(loss)[1]
            peaks[name], errors[name] = memory.peak_bytes, float((gradient - exact).norm() / exact.norm())
            del gradient
        timings = take_turns({name: (lambda c=loss: run(c)) for name, loss in candidates.items()}, rounds)
        what = f"loss of {sequence} tokens, {str(dtype).removeprefix('torch.')}"
        for name in peaks:
            timing = timings.get(name, Timing([float("nan")]))
            row = timing_row(what, name, timing, timings["plain"], peaks, "plain")
            rows.append({**row, "weight_gradient_error": f"{errors[name]:.2e}"})
    return rows


def bench_mlp(sequence: int, rounds: int) -> list[dict[str, Any]]:
    """Measure a feed-forward layer alone, and how often the hook of a parameter runs in one backward pass."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    torch.manual_seed(0)
    x = torch.randn(1, sequence, 512, requires_grad=True)
    layers = {
        name: LlamaMLP(LlamaConfig(hidden_size=512, intermediate_size=1376)) for name in ("plain", "ours", "peer")
    }
    shards = 8

    def ours(layer: Any) -> torch.Tensor:
        weights = layer.gate_proj.weight, layer.up_proj.weight, layer.down_proj.weight
        return fw.chunked_mlp(x, *weights, chunk_size=sequence // shards)

    candidates: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: layers["plain"](x),
        "fw.chunked_mlp": lambda: ours(layers["ours"]),
    }
    try:
        from liger_kernel.ops.tiled_mlp import apply_tiled_mlp
    except ImportError:
        print("liger-kernel is not installed: left out")
    else:
        candidates["Liger, tiled"] = lambda: apply_tiled_mlp(type(layers["peer"]).forward, layers["peer"], x, shards)
    calls = dict.fromkeys(candidates, 0)
    for name, layer in zip(candidates, layers.values(), strict=False):
        layer.up_proj.weight.register_post_accumulate_grad_hook(
            lambda parameter, name=name: calls.update({name: calls[name] + 1})
        )

    def run(forward: Callable[[], torch.Tensor]) -> None:
        forward().sum().backward()
        for layer in layers.values():
            layer.zero_grad()
        x.grad = None

    peaks, hooks = {}, {}
    for name, forward in candidates.items():
        with fw.measure_memory(nn.Linear(1, 1)) as memory:
            run(forward)
        peaks[name], hooks[name] = memory.peak_bytes, calls[name]
    timings = take_turns({name: (lambda f=forward: run(f)) for name, forward in candidates.items()}, rounds)
    what = f"feed-forward layer, {sequence} tokens in {shards} chunks"
    return [
        {**timing_row(what, name, timing, timings["plain"], peaks, "plain"), "hook_calls": hooks[name]}
        for name, timing in timings.items()
    ]


def bench_curve(sequence: int, only: list[str], steps: int = 200) -> list[dict[str, Any]]:
    """Train on bytes of the standard library and return the loss of each step."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = b"".join(file.read_bytes() for file in files)[: sequence * steps]
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().view(steps, 1, sequence)
    order = torch.randperm(steps, generator=torch.Generator().manual_seed(0))
    rows = []
    # Eight chunks, whatever the length.
    for setup in setups(sequence // 8, sequence // 8):
        if setup.name not in (only or CURVES):
            continue
        torch.manual_seed(0)
        model = prepare(LlamaForCausalLM(LlamaConfig(vocab_size=256, **SMALL)), setup)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        started = time.perf_counter()
        for number, index in enumerate(order.tolist()):
            loss = model(input_ids=data[index], labels=data[index], use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rows.append({"setup": setup.name, "sequence": sequence, "step": number + 1, "loss": f"{loss.item():.7f}"})
        print(setup.name, f"{time.perf_counter() - started:.0f} s, last loss {rows[-1]['loss']}", flush=True)
    return rows


def bench_longest(only: list[str], models: list[str]) -> list[dict[str, Any]]:
    """Solve for the longest sequence of each recipe in a budget."""
    rows = []
    for name, shape, dtype, budget, chosen, with_state in (
        ("SmolLM2-135M", SMOLLM2, torch.float32, 8 * GIB, setups(2048, 512), True),
        ("Llama-3-8B", LLAMA_3_8B, torch.bfloat16, 78 * GIB, setups(4096, 1024), True),
        ("Llama-3-8B stateless", LLAMA_3_8B, torch.bfloat16, 78 * GIB, setups(4096, 1024), False),
    ):
        state = 2 * dtype.itemsize * numel(shape) if with_state else 0
        kept = "AdamW's state" if with_state else "no optimizer state"
        for setup in chosen:
            if (only and setup.name not in only) or (models and name not in models):
                continue
            started = time.perf_counter()
            is_checkpointed = setup.checkpoint or (setup.method is not None and bool(setup.method.checkpoint))
            is_offloaded = setup.method is not None and setup.method.checkpoint == "offload"
            # Long enough that the peak stands where it will stand at the end.
            start = (65536, 131072) if is_offloaded else (16384, 32768) if is_checkpointed else (2048, 4096)
            tokens, peak, slope = longest_sequence(shape, dtype, setup, budget - state, start)
            host = shape["num_hidden_layers"] * shape["hidden_size"] * dtype.itemsize * tokens if is_offloaded else 0
            row = {
                "what": f"{name.split()[0]} {str(dtype).removeprefix('torch.')}, {budget // GIB} GiB with {kept}",
                "setup": setup.name,
                "tokens": tokens,
                "peak_gib": round((peak + state) / GIB, 2),
                "kib_per_token": round(slope / 1024, 1),
                "host_gib": round(host / GIB, 1),
            }
            print(row, f"{time.perf_counter() - started:.0f} s", flush=True)
            rows.append(row)
    return rows


def plot() -> None:
    """Draw the longest sequences and the curves of the committed rows."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from featherweight.report.pictures import PALETTE, settings

    longest = list(csv.DictReader((RESULTS / "long_sequence_longest.csv").open()))
    curves = list(csv.DictReader((RESULTS / "long_sequence_curve.csv").open()))
    bars = {row["setup"]: int(row["tokens"]) for row in longest if row["what"].startswith("SmolLM2")}
    bars = {setup.name: bars[setup.name] for setup in reversed(setups()) if setup.name in bars}
    with matplotlib.rc_context(settings("long sequence")):
        figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=160)
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        left.barh(list(bars), list(bars.values()), color=PALETTE[0][0])
        left.set_xscale("log")
        left.xaxis.set_major_formatter(EngFormatter(sep=""))
        left.set_xlim(1000, 8 * max(bars.values()))
        for index, tokens in enumerate(bars.values()):
            left.text(tokens * 1.08, index, f"{tokens:,}", va="center", fontsize=9)
        left.set_xlabel("tokens of one sequence (log scale)")
        left.set_title("SmolLM2-135M, AdamW: what fits 8 GiB", fontsize=10, fontweight="bold")
        for name, style in zip(CURVES, ("-", "--", ":"), strict=True):
            points = [(int(row["step"]), float(row["loss"])) for row in curves if row["setup"] == name]
            right.plot(*zip(*points, strict=True), style, label=name, linewidth=1 if style == "-" else 1.8)
        right.set_xlabel("step")
        right.set_ylabel("loss (nats/byte)")
        right.set_title("Three ways, one curve", fontsize=10, fontweight="bold")
        right.grid(axis="y")
        right.legend(fontsize=9)
        partial = IMAGE.with_suffix(".partial.png")
        figure.savefig(partial)
    partial.replace(IMAGE)
    print(IMAGE)


def bench_card(rounds: int, smoke: bool) -> list[dict[str, Any]]:
    """Run real steps of 8B shapes on a GPU."""
    if not (smoke or torch.cuda.is_available()):
        print("card: no GPU was found; expected one with 80 GB. --smoke runs the same code on small shapes")
        return []
    shape, short, limit = (LLAMA_3_8B, 8192, 2**21) if not smoke else ({**SMALL, "vocab_size": 512}, 256, 1024)
    rows = []
    for name, setup, kind in (
        ("recomputation alone", Setup("stock", checkpoint=True), "adamw"),
        ("MsT", Setup("MsT", fw.MsT(checkpoint=True)), "adamw"),
        ("MsT tokenwise", Setup("tokenwise", fw.MsT(checkpoint=True, tokenwise=True)), "adamw"),
        ("MsT tokenwise + offload", Setup("offload", fw.MsT(checkpoint="offload", tokenwise=True)), "adamw"),
        ("same, layer-wise GaLore 8-bit", Setup("galore", fw.MsT(checkpoint="offload", tokenwise=True)), "galore"),
        ("Liger + recomputation", Setup("liger", checkpoint=True), "liger"),
    ):
        try:
            run = card_step(shape, setup, kind)
        except ImportError:
            print("liger-kernel is not installed: left out")
            continue
        run(short)
        seconds = sorted(run(short) for _ in range(rounds))
        longest, peak, sequence = 0, 0, short
        while sequence <= limit:
            try:
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                run(sequence)
            except (torch.OutOfMemoryError, fw.errors.DeviceError) as error:  # the host may be full first
                print(name, sequence, str(error)[:160])
                break
            longest = sequence
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            sequence += max(short // 2, sequence // 8 // (short // 2) * (short // 2))
        rows.append(
            {
                "what": f"Llama, hidden {shape['hidden_size']}, bfloat16, batch 1",
                "setup": name,
                f"tokens_per_s_{short}": round(short / seconds[len(seconds) // 2]),
                "longest_tokens": longest,
                "peak_gib": round(peak / GIB, 2),
            }
        )
        print(rows[-1], flush=True)
        del run
        gc.collect()
        torch.cuda.empty_cache()
    return [] if smoke else rows


def card_step(shape: dict[str, Any], setup: Setup, kind: str) -> Callable[[int], float]:
    """Return a function that trains one step on so many tokens and tells the seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = build(LlamaConfig(max_position_embeddings=2**21, **shape), torch.bfloat16)
    if kind == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(model=model)
    prepare(model, setup)
    if kind == "galore":
        groups = fw.optim.param_groups(model, rank=min(1024, shape["hidden_size"] // 4))
        optimizer: torch.optim.Optimizer = fw.optim.GaLoreAdamW(groups, lr=1e-5, state_bits=8)
        fw.optim.layerwise(model, optimizer)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run(sequence: int) -> float:
        tokens = torch.randint(shape["vocab_size"], (1, sequence), device=device)
        synchronize()
        start = time.perf_counter()
        try:
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            optimizer.step()
        finally:
            optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - start

    return run


def main() -> None:
    """Run what is asked for and append the rows to results/long_sequence_<what>.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["step", "loss", "mlp"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--setups", nargs="*", default=[], help="step, curve, longest: only these")
    parser.add_argument("--models", nargs="*", default=[], help="longest: only these")
    parser.add_argument("--smoke", action="store_true", help="card: small shapes on any machine, no rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    benchmarks: dict[str, Callable[[], list[dict[str, Any]] | None]] = {
        "step": lambda: bench_step(arguments.sequence, arguments.rounds, arguments.setups),
        "loss": lambda: bench_loss(arguments.sequence, arguments.rounds),
        "mlp": lambda: bench_mlp(arguments.sequence, arguments.rounds),
        "curve": lambda: bench_curve(arguments.sequence, arguments.setups),
        "longest": lambda: bench_longest(arguments.setups, arguments.models),
        "plot": plot,
        "card": lambda: bench_card(arguments.rounds, arguments.smoke),
    }
    for what in arguments.what:
        rows = benchmarks[what]() or []
        for row in rows if what != "curve" else []:
            print("  ".join(f"{key}={value}" for key, value in row.items()))
        if rows:
            print(write_rows(f"long_sequence_{what}", rows))


if __name__ == "__main__":
    main()
