"""Do ranks that grow by themselves learn as well as dense layers, and as ranks that somebody had to guess?

    scripts/bench inrank --seed 0 --rows dense,inrank --matrix-lr 3.75e-4,7.5e-4,1.5e-3   # one line of the CSV each
    scripts/bench inrank --seed 0 --rows inrank --explained 0.8,0.95 --matrix-lr 7.5e-4
    scripts/bench inrank --table                                                          # for docs/inrank.md

Model: Llama, hidden 128, feed-forward 352, 4 layers, vocabulary of bytes; 300 steps of 8 x 128 tokens of the English
corpus, AdamW at constant rates after 20 steps of warm-up, weight decay 0.1, clipping at 1. Every row has two rates:
that of embeddings, output head and norms, and that of the matrices, dense or factors (whose rate then follows their
rank, as `fw.InRank` has it). InRank: buffer 40, checks every 10 steps after step 10, ranks fixed at step 200 and the
buffer dropped. Fixed rank: the mean that InRank found with the same seed, share and rates. A run that stands in the CSV
is not made again. The rows of results/inrank.csv are from before there were two rates.
"""

import argparse
import csv
import itertools
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measurement import RESULTS, write_rows
from torch import nn

import featherweight as fw
from featherweight.methods.inrank import growth_state
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.optim.group_rates import scale_matrix_lr
from featherweight.text.task import TextConfig, TextTask

STEPS, BATCH, SEQ_LEN, LR = 300, 8, 128, 1.5e-3
FREEZE_STEP = 200
NAME = "inrank_two_rates"
MLP = r".*mlp\..*_proj"
GROWING: dict[str, Any] = {"buffer": 40, "every": 10, "warmup": 10, "freeze_step": FREEZE_STEP, "patience": None}
FIXED: dict[str, Any] = {"buffer": 0, "warmup": STEPS}
ROWS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "inrank": GROWING,
    "fixed": FIXED,
    "inrank_product": {**GROWING, "growth": "product"},
    "inrank_zero_buffer": {**GROWING, "buffer_init": "zero"},
    "inrank_one_rate": {**GROWING, "lr_factor": 1.0},
    "inrank_w0": {**GROWING, "keep_w0": True},
    "inrank_mlp": {**GROWING, "target_modules": MLP},
    "fixed_mlp": {**FIXED, "target_modules": MLP},
    "fixed_cola": {**FIXED, "activation": "silu"},
}
KEY = ("row", "seed", "matrix_lr", "explained", "steps")
"""What makes a run; one that stands in the CSV is not made again."""


def rows_of(name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV."""
    path = RESULTS / f"{name}.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def run(row: str, seed: int, matrix_lr: float, explained: float, steps: int, pictures: Path | None) -> dict[str, Any]:
    """Train once and return what came out."""
    task = TextTask(TextConfig(model="tiny", corpus="english", seq_len=SEQ_LEN, max_held_out_tokens=60_000), seed=seed)
    model = task.build_model()
    dense_numel = sum(p.numel() for p in model.parameters())
    freeze_step = min(FREEZE_STEP, steps)
    method = method_of(row, seed, matrix_lr, explained, freeze_step)
    if method is not None:
        fw.apply(model, method)
    groups: list[dict[str, Any]] = [{"params": [(n, p) for n, p in model.named_parameters() if p.requires_grad]}]
    groups = scale_matrix_lr(groups, model, LR, matrix_lr / LR)
    groups = groups if method is None else method.param_groups(model, LR, groups)
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    checks_s, peaks, freezing, began = 0.0, {}, {}, time.process_time()
    for step, batch in enumerate(itertools.islice(task.batches("train", micro_batch_size=BATCH, seed=seed), steps), 1):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, step / 20)
        is_measured = {freeze_step - 1: "growing", steps: "fixed"}.get(step)
        with fw.measure_memory(model, optimizer) if is_measured else nullcontext() as memory:
            total, items = task.loss(model, batch)
            (total / items).backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            optimizer.step()
        if is_measured:
            peaks[is_measured] = memory.peak_bytes
        optimizer.zero_grad()
        if method is not None:
            if step == freeze_step:
                freezing["loss_before_freezing"] = round(loss_of(model, task), 5)
            start = time.process_time()
            method.after_step(model, optimizer, step)
            checks_s += time.process_time() - start
            if step == freeze_step:
                freezing["loss_after_freezing"] = round(loss_of(model, task), 5)
    seconds = time.process_time() - began
    if pictures is not None and method is not None:
        report = method.report(model)
        pictures.mkdir(parents=True, exist_ok=True)
        report.save_picture(pictures / "inrank_ranks.png", "Rank over time")
        report.save_html(pictures / "inrank.html")
    layers = low_rank_modules(model)
    ranks = [growth_state(model).ranks[name] for name in layers] if method is not None else []
    factored = sum(layer.rank * (layer.in_features + layer.out_features) for layer in layers.values())
    replaced = sum(layer.in_features * layer.out_features for layer in layers.values())
    return {
        "row": row,
        "seed": seed,
        "lr": LR,
        "matrix_lr": matrix_lr,
        "explained": explained,
        "steps": steps,
        "held_out_loss": round(task.evaluate(model, micro_batch_size=16)["held_out_loss"], 5),
        "mean_rank": round(sum(ranks) / len(ranks), 2) if ranks else "",
        "smallest_rank": min(ranks, default=""),
        "largest_rank": max(ranks, default=""),
        "mean_rank_share": round(sum(layer_shares(layers)) / len(layers), 4) if layers else 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dense_parameters": dense_numel,
        "layer_flops_share": round(factored / replaced, 4) if replaced else 1,
        "peak_bytes_growing": peaks.get("growing", ""),
        "peak_bytes_fixed": peaks.get("fixed", ""),
        "cpu_s_per_step": round(seconds / steps, 4),
        "checks_share": round(checks_s / seconds, 5),
        "loss_before_freezing": freezing.get("loss_before_freezing", ""),
        "loss_after_freezing": freezing.get("loss_after_freezing", ""),
    }


def method_of(row: str, seed: int, matrix_lr: float, explained: float, freeze_step: int) -> fw.InRank | None:
    """Return the method of a row, or None for dense layers."""
    options = ROWS[row]
    if options is None:
        return None
    if row.startswith("fixed"):
        return fw.InRank(explained=explained, init_rank=rank_found(row, seed, matrix_lr, explained), **options)
    return fw.InRank(explained=explained, **{**options, "freeze_step": freeze_step})


def layer_shares(layers: dict[str, Any]) -> list[float]:
    """Return rank over full rank of each layer."""
    return [layer.rank / min(layer.in_features, layer.out_features) for layer in layers.values()]


def loss_of(model: nn.Module, task: TextTask) -> float:
    """Return the loss of one held-out batch."""
    batch = next(task.batches("held_out", micro_batch_size=16, seed=0))
    with torch.no_grad():
        total, items = task.loss(model, batch)
    return total.item() / items


def rank_found(row: str, seed: int, matrix_lr: float, explained: float) -> int:
    """Return the mean rank that InRank found with the same seed, rates and share."""
    grown = "inrank_mlp" if row.endswith("mlp") else "inrank"
    wanted = (grown, *map(str, (seed, matrix_lr, explained, STEPS)))
    found = [float(r["mean_rank"]) for r in rows_of(NAME) if tuple(r[key] for key in KEY) == wanted]
    if not found:
        raise SystemExit(f"bench_inrank: {row} needs the ranks of {wanted}; run that row first.")
    return round(found[0])


def table() -> None:
    """Print the runs, losses by seed; of each row the rate with the lowest loss on seed 0 counts."""
    rows = rows_of(NAME)
    keys = sorted({tuple(r[key] for key in KEY if key != "seed") for r in rows})
    print(
        "| row | rate of matrices | explained | steps | loss by seed | mean | rank share | parameters | FLOPs share "
        "| peak MiB, fixed | CPU s a step |"
    )
    print("|---" * 11 + "|")
    for name, matrix_lr, explained, steps in keys:
        mine = [
            r
            for r in rows
            if (r["row"], r["matrix_lr"], r["explained"], r["steps"]) == (name, matrix_lr, explained, steps)
        ]

        def mean(column: str, mine: list[dict[str, str]] = mine) -> float:
            return sum(float(r[column]) for r in mine) / len(mine)

        losses = " / ".join(f"{float(r['held_out_loss']):.3f} ({r['seed']})" for r in mine)
        cells = [name, matrix_lr, explained if name.startswith("inrank") else "", steps, losses]
        cells += [f"{mean('held_out_loss'):.3f}", f"{mean('mean_rank_share'):.0%}", f"{mean('parameters'):,.0f}"]
        cells += [
            f"{mean('layer_flops_share'):.2f}",
            f"{mean('peak_bytes_fixed') / 2**20:.1f}",
            f"{mean('cpu_s_per_step'):.3f}",
        ]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--matrix-lr", default="7.5e-4", help="one or several, with commas")
    parser.add_argument("--explained", default="0.9", help="one or several, with commas")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    rates, shares = ([float(one) for one in text.split(",")] for text in (arguments.matrix_lr, arguments.explained))
    for row in arguments.rows.split(",") if arguments.seed is not None else ():
        for matrix_lr, explained in itertools.product(rates, shares if row != "dense" else shares[:1]):
            wanted = tuple(map(str, (row, arguments.seed, matrix_lr, explained, arguments.steps)))
            if any(tuple(r[key] for key in KEY) == wanted for r in rows_of(NAME)):
                continue
            pictures = arguments.pictures if row == "inrank" else None
            result = run(row, arguments.seed, matrix_lr, explained, arguments.steps, pictures)
            write_rows(NAME, [result])
            print(result, flush=True)
    if arguments.table:
        table()


if __name__ == "__main__":
    main()
