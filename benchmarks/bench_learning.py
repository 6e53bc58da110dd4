"""Do the low-rank optimizers learn as well as AdamW? A byte-level Llama on real text, every method on its own grid.

    scripts/bench learning --tune            # the grid below on seed 0, along its axes
    scripts/bench learning --confirm         # the best setting of each method on seeds 0, 1, 2
    scripts/bench learning --speed           # tokens/s of whole training steps, in alternating rounds
    scripts/bench learning --table           # the table from the CSV
    scripts/bench learning --tune --confirm --again     # all of it anew on this machine, some hours
    scripts/bench learning --confirm --methods apollo,apollo_torch      # some methods only

Model: Llama, hidden 128, 4 layers, 4 heads, vocabulary of bytes; 400 steps of 8 x 256 tokens of the English corpus,
warm-up over 10 % of the steps, cosine to 10 %, no weight decay, no clipping. Low-rank methods: rank 32 = hidden / 4,
gap 50 (APOLLO-Mini: rank 1; LDAdam: every step), else their defaults. Peers in the same loop: apollo-torch and
torch.optim.Muon (with AdamW for what is no hidden matrix). Every grid includes a multiplier of the learning rate for
embeddings and head: GaLore's recipes run these parameters at the full rate and the matrices at `scale` times it, and
without that freedom AdamW looks far worse than it is.
"""

import argparse
import itertools
import json
import math
import statistics
from typing import Any

import torch
from measurement import read_rows, take_turns, write_rows
from rich.console import Console
from rich.table import Table
from torch import nn

import featherweight as fw
from featherweight.optim import build_optimizer, param_groups, parse_optimizer
from featherweight.optim.group_rates import scale_embedding_lr
from featherweight.text.task import TextConfig, TextTask
from featherweight.training.trained_model import cast_weights

STEPS, BATCH, SEQ_LEN, WARM_UP = 400, 8, 256, 40
RANK, GAP = 32, 50
LOW_RANK = {"rank": RANK, "update_proj_gap": GAP}
Grid = tuple[dict[str, Any], list[float], list[float]]
# Method: (fixed options, learning rates, multipliers for embeddings and head). Every grid has twelve points.
GRID: dict[str, Grid] = {
    "adamw": ({"name": "adamw"}, [1e-3, 2e-3, 4e-3], [1, 4, 8, 16]),
    "galore": ({"name": "galore", **LOW_RANK}, [1e-2, 2e-2, 4e-2], [0.5, 1, 2, 4]),
    **{  # the sign of what lies outside of the subspace, without state
        f"galore_sign_{weight}": (
            {"name": "galore", **LOW_RANK, "residual": "equalized", "residual_weight": weight},
            [1e-2, 2e-2, 4e-2],
            [0.5, 1, 2, 4],
        )
        for weight in (0.01, 0.03, 0.1)
    },
    "fira": ({"name": "fira", **LOW_RANK}, [1e-2, 2e-2, 4e-2], [0.5, 1, 2, 4]),
    "apollo": ({"name": "apollo", **LOW_RANK}, [1e-2, 2e-2, 4e-2], [0.5, 1, 2, 4]),
    "apollo_mini": ({"name": "apollo_mini", "update_proj_gap": GAP}, [1.25e-3, 2.5e-3, 5e-3], [4, 8, 16, 32]),
    "ldadam": ({"name": "ldadam", "rank": RANK}, [1.25e-3, 2.5e-3, 5e-3], [4, 8, 16, 32]),
    "gum": ({"name": "gum", **LOW_RANK}, [2.5e-3, 5e-3, 1e-2], [4, 8, 16, 32]),
    "scale": ({"name": "scale"}, [1e-3, 2e-3, 4e-3], [0.125, 0.25, 0.5, 1]),
    "muon": ({"name": "torch_muon"}, [5e-3, 1e-2, 2e-2], [1, 2, 4, 8]),
}
# Variants run at the best rates of the method that they vary: what differs is the named option alone.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_bf16": ("adamw", {"precision": "bf16"}),
    "adamw_8bit": ("adamw", {"name": "adamw_8bit"}),
    "galore_bf16": ("galore", {"precision": "bf16"}),
    "galore_8bit": ("galore", {"name": "galore_8bit"}),
    "galore_4bit": ("galore", {"name": "galore_4bit"}),
    "galore_keep": ("galore", {"moment_policy": "keep"}),
    "galore_early": ("galore", {"early_refresh": True}),
    "galore_keep_early": ("galore", {"moment_policy": "keep", "early_refresh": True}),
    "galore_svd": ("galore", {"basis_method": "svd"}),
    "galore_right": ("galore", {"proj_type": "right"}),
    "galore_random": ("galore", {"basis_method": "random"}),
    "galore_sign_rank_4": ("galore_sign_0.1", {"rank": 4}),
    "galore_sign_8bit": ("galore_sign_0.1", {"name": "galore_8bit"}),
    "galore_core": ("galore", {"core_gradient": True}),
    "galore_core_right": ("galore", {"core_gradient": True, "proj_type": "right"}),
    "galore_shared": ("galore", {"core_gradient": {"share_basis": True}, "proj_type": "right"}),
    "q_galore": ("galore", {"name": "q_galore", "weights": "int8"}),
    "q_galore_bf16": ("galore", {"name": "q_galore", "weights": "int8", "precision": "bf16"}),
    "q_galore_core": ("galore", {"name": "q_galore", "weights": "int8", "core_gradient": True}),
    "q_galore_float": ("galore", {"name": "q_galore"}),
    "q_galore_nearest": ("galore", {"name": "q_galore", "weights": "int8", "stochastic_rounding": False}),
    "q_galore_renorm": ("galore", {"name": "q_galore", "weights": "int8", "basis_renorm": True}),
    "q_galore_not_lazy": ("galore", {"name": "q_galore", "weights": "int8", "lazy": False}),
    "apollo_torch": ("apollo", {"name": "apollo_torch"}),
    "apollo_mini_torch": ("apollo_mini", {"name": "apollo_torch", "rank": 1, "scale": 128.0, "scale_type": "tensor"}),
    "ldadam_feedback": ("ldadam", {"error_feedback": True}),
    "gum_biased": ("gum", {"full_rank_probability": 0.0}),
}
COLUMNS = ("method", "options", "seed", "held_out_loss", "state_bytes")


def build(model: nn.Module, options: dict[str, Any], seed: int) -> list[torch.optim.Optimizer]:
    """Prepare the model and return the optimizer that the options describe: one of ours, or that of a peer."""
    options = dict(options)
    if options.pop("precision", "fp32") == "bf16":
        cast_weights(model, torch.bfloat16)
    if options.pop("weights", "float") == "int8":
        fw.apply(model, fw.Int8())
    if core_gradient := options.pop("core_gradient", False):
        fw.apply(model, fw.CoreGradient() if core_gradient is True else fw.CoreGradient(**core_gradient))
        optimizer = build_optimizer(model, parse_optimizer(options), seed=seed)
        fw.optim.layerwise(model, optimizer)
        return [optimizer]
    if options["name"] not in ("apollo_torch", "torch_muon"):
        return [build_optimizer(model, parse_optimizer(options), seed=seed)]
    lr, factor = options["lr"], options["embedding_lr_factor"]
    groups = scale_embedding_lr(param_groups(model), model, lr, factor)
    groups = [{**group, "params": [parameter for _, parameter in group["params"]]} for group in groups]
    low = [group["params"] for group in groups if group["low_rank"]]
    rest = [{"params": group["params"], "lr": group.get("lr", lr)} for group in groups if not group["low_rank"]]
    if options["name"] == "torch_muon":
        matrices = [parameter for each in low for parameter in each]
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(rest, lr=lr, weight_decay=0.0)]
    from apollo_torch import APOLLOAdamW

    keys = {"rank": options["rank"], "update_proj_gap": options["update_proj_gap"], "proj_type": "std"}
    keys |= {"proj": "random", "scale_type": options.get("scale_type", "channel"), "scale": options.get("scale", 1.0)}
    projected = [{"params": each, **keys} for each in low]
    return [APOLLOAdamW([*projected, *rest], lr=lr, eps=1e-8, weight_decay=0.0, no_deprecation_warning=True)]


def state_bytes(optimizers: list[torch.optim.Optimizer]) -> int:
    """Return the bytes of all state tensors, those inside apollo-torch's projectors too."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    values = [value for state in states for value in state.values()]
    values += [value.ortho_matrix for value in values if hasattr(value, "ortho_matrix")]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def train(options: dict[str, Any], seed: int, tasks: dict[int, TextTask]) -> tuple[float, int]:
    """Train once; return (held-out loss, bytes of optimizer state)."""
    if seed not in tasks:
        config = TextConfig(model="tiny", corpus="english", seq_len=SEQ_LEN, max_held_out_tokens=60_000)
        tasks[seed] = TextTask(config, seed=seed)
    task = tasks[seed]
    model = task.build_model()
    optimizers = build(model, options, seed)

    def factor(step: int) -> float:
        if step < WARM_UP:
            return (step + 1) / WARM_UP
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    for batch in itertools.islice(task.batches("train", micro_batch_size=BATCH, seed=seed), STEPS):
        total, items = task.loss(model, batch)
        (total / items).backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return task.evaluate(model, micro_batch_size=BATCH)["held_out_loss"], state_bytes(optimizers)


Key = tuple[str, str, str]


def read() -> dict[Key, dict[str, str]]:
    """Return the rows of the CSV by (method, options, seed); of several with the same key the newest."""
    return {(row["method"], row["options"], row["seed"]): row for row in read_rows("learning")}


def run(method: str, options: dict[str, Any], seed: int, tasks: dict[int, TextTask], known: set[Key]) -> None:
    """Measure one setting unless it is known, and make it known."""
    text = json.dumps(options, sort_keys=True)
    if (method, text, str(seed)) in known:
        return
    loss, size_bytes = train(options, seed, tasks)
    values = (method, text, seed, round(loss, 5), size_bytes)
    write_rows("learning", [dict(zip(COLUMNS, values, strict=True))])
    known.add((method, text, str(seed)))
    print(f"{method:14} seed {seed}  {loss:.4f}  {text}", flush=True)


def tune(method: str, tasks: dict[int, TextTask], known: set[Key]) -> None:
    """Search the grid of a method on seed 0 along its axes, from its middle: first the rate, then the multiplier."""
    fixed, rates, factors = GRID[method]
    place: dict[str, float] = {"lr": rates[1], "embedding_lr_factor": factors[1]}
    for key, values in (("lr", rates), ("embedding_lr_factor", factors)):
        tried = [{**fixed, **place, key: value} for value in values]
        for options in tried:
            run(method, options, 0, tasks, known)
        rows = read()
        losses = [float(rows[method, json.dumps(one, sort_keys=True), "0"]["held_out_loss"]) for one in tried]
        place[key] = values[losses.index(min(losses))]


def best(method: str) -> dict[str, Any]:
    """Return the options with the lowest loss on seed 0; of a variant, those of its base with its own change."""
    if method in VARIANTS:
        base, change = VARIANTS[method]
        return {**best(base), **change}
    rows = [row for (name, _, seed), row in read().items() if (name, seed) == (method, "0")]
    return json.loads(min(rows, key=lambda row: float(row["held_out_loss"]))["options"])


def speed(methods: list[str], rounds: int = 5, steps: int = 5) -> None:
    """Measure tokens/s of whole training steps at the best settings, no refresh among them if the gap allows."""
    config = TextConfig(model="tiny", corpus="english", seq_len=SEQ_LEN, max_held_out_tokens=60_000)
    task = TextTask(config, seed=0)
    batch = next(task.batches("train", micro_batch_size=BATCH, seed=0))
    candidates = {}
    for method in methods:
        options = dict(best(method))
        model = task.build_model()
        built = build(model, options, seed=0)

        def run_steps(model: nn.Module = model, optimizers: list[torch.optim.Optimizer] = built) -> None:
            for _ in range(steps):
                total, items = task.loss(model, batch)
                (total / items).backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()

        candidates[method] = run_steps
    timings = take_turns(candidates, rounds)
    base = timings["adamw"].median_s
    write_rows(
        "learning_speed",
        [
            {
                "method": method,
                "tokens_per_s": round(steps * BATCH * SEQ_LEN / timing.median_s),
                "ratio": round(base / timing.median_s, 3),
                "spread": round(timing.spread, 3),
            }
            for method, timing in timings.items()
        ],
    )
    for method, timing in timings.items():
        rate = steps * BATCH * SEQ_LEN / timing.median_s
        print(f"{method:20} {rate:8.0f} tokens/s  {base / timing.median_s:.2f} x AdamW")


def show() -> None:
    """Print the table of the confirmed settings."""
    table = Table("method", "rates", "held-out loss (seeds)", "spread", "vs AdamW", "state (KiB)")
    means = {}
    for method in [*GRID, *VARIANTS]:
        rows = [row for row in read().values() if row["method"] == method]
        if not rows:
            continue
        options = best(method)
        chosen = [row for row in rows if json.loads(row["options"]) == options]
        if not chosen:
            continue
        losses = [float(row["held_out_loss"]) for row in chosen]
        means[method] = statistics.mean(losses)
        table.add_row(
            method,
            ", ".join(f"{k}={v}" for k, v in options.items() if k in ("lr", "embedding_lr_factor")),
            f"{means[method]:.4f} ({len(losses)})",
            f"{max(losses) - min(losses):.4f}",
            f"{means[method] / means['adamw']:.3f}",
            f"{int(chosen[0]['state_bytes']) / 1024:.0f}",
        )
    Console(width=140).print(table)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--confirm", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure anew what the CSV has already")
    parser.add_argument("--methods", default=",".join([*GRID, *VARIANTS]))
    arguments = parser.parse_args()
    if arguments.speed:
        speed(arguments.methods.split(","))
        return
    tasks: dict[int, TextTask] = {}
    known: set[Key] = set() if arguments.again else set(read())
    for method in arguments.methods.split(","):
        if arguments.tune and method in GRID:
            tune(method, tasks, known)
        if arguments.confirm:
            for seed in (0, 1, 2):
                run(method, best(method), seed, tasks, known)
    show()


if __name__ == "__main__":
    main()
