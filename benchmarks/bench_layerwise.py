"""Layer-wise updates: their time and memory against ordinary steps, and against the layer-wise path of transformers.

    scripts/bench layerwise [--model 9m|60m] [--rounds 7]
    scripts/bench layerwise --real          # only the bytes of steps of SmolLM2-135M

1. One whole training step (forward, backward, update; 2 x 256 tokens) of a Llama with random weights, ordinary and
   layer-wise, in alternating rounds in one process: AdamW, GaLore, 8-bit GaLore, each with and without four
   micro-batches a step. The ratio is layer-wise / ordinary of the same optimizer; memory is that of the tracker in
   steps outside of the timed ones.
2. transformers.Trainer with its own `galore_adamw_layerwise` (galore-torch) and with ours, in turn: time of a step,
   peak of all tensors. Same rank and gap, no refresh in the timed steps.
3. With --real: bytes of gradients and of everything at the peak of steps of a pretrained model.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from bench_optimizer import DEVICE, SHAPES
from measurement import Timing, machine, synchronize, take_turns, write_rows
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import featherweight as fw
from featherweight.optim import LowRankOptimizer, build_optimizer, layerwise, parse_optimizer

ROWS, SEQ_LEN, MICRO_BATCHES = 2, 256, 4
GAP = 10**6
OPTIMIZERS = {
    "AdamW": {"name": "adamw"},
    "GaLore": {"name": "galore", "update_proj_gap": GAP},
    "GaLore 8-bit": {"name": "galore_8bit", "update_proj_gap": GAP},
    "APOLLO-Mini": {"name": "apollo_mini", "update_proj_gap": GAP},
}


def build_model(name: str) -> tuple[nn.Module, int]:
    """Return a Llama of random weights, and the rank d / 4."""
    shape: dict[str, Any] = dict(SHAPES[name])
    rank = shape.pop("rank")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, tie_word_embeddings=False, **shape))
    return model.to(DEVICE), rank


def build_step(name: str, options: dict[str, Any], accumulation_steps: int, is_layerwise: bool) -> Any:
    """Return (a function that makes one optimizer step, model, optimizer), one step old."""
    model, rank = build_model(name)
    ranked = {"rank": rank} if "galore" in options["name"] else {}
    optimizer = build_optimizer(model, parse_optimizer({**options, **ranked, "lr": 1e-4}))
    tokens = torch.randint(0, 32000, (ROWS, SEQ_LEN), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    if is_layerwise:
        layerwise(model, optimizer, accumulation_steps=accumulation_steps)

    def step() -> None:
        for _ in range(accumulation_steps):
            (model(tokens, labels=tokens).loss / accumulation_steps).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    for state in optimizer.state.values():
        if "next_refresh" in state:
            state["next_refresh"].fill_(GAP)
    return step, model, optimizer


def peak_bytes(step: Callable[[], None], model: nn.Module, optimizer: LowRankOptimizer) -> tuple[int, int]:
    """Return the bytes of gradients and of everything at the peak of a step."""
    with fw.measure_memory(model, optimizer) as memory:
        step()
    return memory.max_by_category["gradients"], memory.peak_bytes


def bench_steps(name: str, rounds: int) -> list[dict[str, Any]]:
    """Compare ordinary and layer-wise steps of the same optimizers."""
    rows = []
    for label, options in OPTIMIZERS.items():
        for accumulation_steps in (1, MICRO_BATCHES):
            made = {flag: build_step(name, options, accumulation_steps, flag) for flag in (False, True)}
            timings = take_turns({str(flag): each[0] for flag, each in made.items()}, rounds)
            for flag, (step, model, optimizer) in made.items():
                gradients, peak = peak_bytes(step, model, optimizer)
                what = f"{label}, {accumulation_steps} micro-batch{'es' if accumulation_steps > 1 else ''}"
                rows.append(
                    row("training step", name, what, "layer-wise" if flag else "ordinary", timings[str(flag)])
                    | {"ratio": round(timings[str(flag)].median_s / timings["False"].median_s, 3)}
                    | {"gradient_bytes": gradients, "peak_bytes": peak}
                )
    return rows


def row(measurement: str, model: str, what: str, mode: str, timing: Timing) -> dict[str, Any]:
    """Return one row of the CSV."""
    return {
        "measurement": measurement,
        "model": model,
        "what": what,
        "mode": mode,
        "median_s": round(timing.median_s, 5),
        "fastest_s": round(timing.fastest_s, 5),
        "slowest_s": round(max(timing.runs_s), 5),
        "spread": round(timing.spread, 3),
    }


class StepTimes(TrainerCallback):
    """Collects the time of every step of a Trainer."""

    def __init__(self) -> None:  # noqa: D107
        self.runs_s: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        synchronize()
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        synchronize()
        self.runs_s.append(time.perf_counter() - self._start)


def run_trainer(name: str, kind: str, steps: int) -> tuple[list[float], int]:
    """Train for some steps; return their times without the first, which fits bases, and the peak of all tensors."""
    model, rank = build_model(name)
    tokens = torch.randint(0, 32000, (ROWS * steps, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": one, "labels": one} for one in tokens]
    settings: dict[str, Any] = {
        "max_steps": steps, "per_device_train_batch_size": ROWS, "learning_rate": 1e-4, "report_to": [],
        "disable_tqdm": True,
        "use_cpu": DEVICE == "cpu", "save_strategy": "no", "logging_strategy": "no", "max_grad_norm": 0.0,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    times, extra = StepTimes(), {}
    with tempfile.TemporaryDirectory() as folder:
        if kind == "transformers":
            settings |= {"optim": "galore_adamw_layerwise", "optim_target_modules": [r".*attn.*", r".*mlp.*"]}
            settings["optim_args"] = f"rank={rank}, update_proj_gap={GAP}, scale=0.25"
        args = TrainingArguments(folder, **settings)
        if kind != "transformers":
            options = {"rank": rank, "update_proj_gap": GAP, "stagger": False}
            extra = fw.training.trainer_optimizer("galore", model, args, layerwise=kind == "layer-wise", **options)
        trainer = Trainer(model, args, train_dataset=data, callbacks=[times], **extra)
        with fw.measure_memory(model) as memory:
            trainer.train()
        peak = memory.peak_bytes
        times.runs_s.clear()
        trainer.train()
    return times.runs_s[1:], peak


def bench_trainers(name: str, rounds: int, steps: int = 5) -> list[dict[str, Any]]:
    """Compare the Trainer with its own layer-wise GaLore and with ours."""
    kinds = {"transformers": "galore-torch, layer-wise", "layer-wise": "ours, layer-wise", "ordinary": "ours, ordinary"}
    runs: dict[str, list[float]] = {kind: [] for kind in kinds}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for kind in kinds:
            times, peaks[kind] = run_trainer(name, kind, steps)
            runs[kind] += times
    base = Timing(runs["transformers"]).median_s
    return [
        row("transformers.Trainer", name, label, "Trainer", Timing(runs[kind]))
        | {"ratio": round(Timing(runs[kind]).median_s / base, 3), "gradient_bytes": "", "peak_bytes": peaks[kind]}
        for kind, label in kinds.items()
    ]


def bench_real() -> list[dict[str, Any]]:
    """Measure steps of SmolLM2-135M in float32, 2 x 128 tokens, after a first step that creates the state."""
    from featherweight.text.task import TextConfig, TextTask

    task = TextTask(TextConfig(model="smollm2", corpus="english", seq_len=128, max_held_out_tokens=4096), seed=0)
    batch = next(task.batches("train", micro_batch_size=2, seed=0))
    rows = []
    for label, options in OPTIMIZERS.items():
        for mode, accumulation_steps in (
            ("ordinary", 1),
            ("layer-wise", 1),
            (f"layer-wise, {MICRO_BATCHES} parts", MICRO_BATCHES),
        ):
            model = task.build_model().to(DEVICE)
            ranked = {"rank": 128} if "galore" in options["name"] else {}
            optimizer = build_optimizer(model, parse_optimizer({**options, **ranked, "lr": 1e-5}))
            if mode != "ordinary":
                handle = layerwise(model, optimizer, accumulation_steps=accumulation_steps)

            def step(
                model: nn.Module = model, optimizer: LowRankOptimizer = optimizer, parts: int = accumulation_steps
            ) -> None:
                for _ in range(parts):
                    total, items = task.loss(model, batch)
                    (total / items / parts).backward()
                optimizer.step()
                optimizer.zero_grad()

            step()
            for state in optimizer.state.values():
                if "next_refresh" in state:
                    state["next_refresh"].fill_(GAP)
            gradients, peak = peak_bytes(step, model, optimizer)
            rows.append(
                {"measurement": "bytes of a step", "model": "SmolLM2-135M", "what": label, "mode": mode, "median_s": ""}
                | {"fastest_s": "", "slowest_s": "", "spread": "", "ratio": "", "gradient_bytes": gradients}
                | {"peak_bytes": peak}
            )
            print(
                f"{label:14} {mode:22} gradients {gradients / 2**20:7.1f} MiB, predicted "
                f"{optimizer.gradient_bytes() / 2**20:7.1f}, peak {peak / 2**20:7.1f} MiB",
                flush=True,
            )
            del model, optimizer, step
            if mode != "ordinary":
                handle.remove()
    return rows


def main() -> None:
    """Read the arguments, run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="9m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--real", action="store_true")
    arguments = parser.parse_args()
    if arguments.real:
        print(f"rows appended to {write_rows('layerwise', bench_real())}")
        return
    rows = [
        *bench_steps(arguments.model, arguments.rounds),
        *bench_trainers(arguments.model, max(arguments.rounds // 2, 2)),
    ]
    table = Table("measurement", "what", "mode", "median (ms)", "spread", "ratio", "gradients (MiB)", "peak (MiB)")
    for one in rows:
        sizes = [f"{one[key] / 2**20:.1f}" if one[key] != "" else "" for key in ("gradient_bytes", "peak_bytes")]
        numbers = (f"{1000 * one['median_s']:.1f}", f"{one['spread']:.2f}", f"{one['ratio']:.2f}")
        table.add_row(one["measurement"], one["what"], one["mode"], *numbers, *sizes)
    Console(width=150).print(table)
    print(f"{machine()['device']}; rows appended to {write_rows('layerwise', rows)}")


if __name__ == "__main__":
    main()
