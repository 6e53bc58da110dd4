"""Do ranks that grow by themselves learn as well as dense layers, and as ranks that somebody had to guess?

    scripts/bench inrank                                      # all rows below; what stands is not repeated
    scripts/bench inrank --rows dense,inrank_95               # some of them
    scripts/bench inrank --rows inrank --pictures build       # and pictures of the ranks
    scripts/bench inrank --table                              # for docs/inrank.md

Model: Llama, hidden 128, feed-forward 352, 4 layers, vocabulary of bytes; 300 steps of 8 x 128 tokens of the English
corpus, AdamW at constant rates after 20 steps of warm-up, weight decay 0.1, clipping at 1. Every row has two rates:
that of embeddings, output head and norms, 1.5e-3, and that of the matrices, dense or factors (whose rate then follows
their rank, as `fw.InRank` has it). The rate of the matrices is one of four, the same four for every row, chosen on seed
0 by the even rows of the held-out text; seeds 1 and 2 run at it, and what is reported is the loss on the odd rows.
InRank: buffer 40, checks every 10 steps after step 10, ranks fixed at step 200 and the buffer dropped. A fixed rank is
the mean that the tuned InRank of the same share found on seed 0. The rows of results/inrank.csv are from before there
were two rates.
"""

import argparse
import itertools
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measurement import read_rows, write_rows
from torch import nn

import featherweight as fw
from featherweight.methods.inrank import growth_state
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.optim.group_rates import scale_matrix_lr
from featherweight.text.task import TextConfig, TextTask

STEPS, BATCH, SEQ_LEN, LR = 300, 8, 128, 1.5e-3
MATRIX_RATES = (3.75e-4, 7.5e-4, 1.5e-3, 3e-3)
SEEDS = (0, 1, 2)
FREEZE_STEP = 200
NAME = "inrank_two_rates"
MLP = r".*mlp\..*_proj"
GROWING: dict[str, Any] = {"buffer": 40, "every": 10, "warmup": 10, "freeze_step": FREEZE_STEP, "patience": None}
GROWING["explained"] = 0.9
FIXED: dict[str, Any] = {"buffer": 0, "warmup": STEPS}
ROWS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "inrank_80": {**GROWING, "explained": 0.8},
    "inrank": GROWING,
    "inrank_95": {**GROWING, "explained": 0.95},
    "fixed": FIXED,
    "fixed_95": FIXED,
    "inrank_w0": {**GROWING, "keep_w0": True},
    "inrank_mlp": {**GROWING, "target_modules": MLP},
    "fixed_mlp": {**FIXED, "target_modules": MLP},
    "fixed_cola": {**FIXED, "activation": "silu"},
    "inrank_product": {**GROWING, "growth": "product"},
    "inrank_zero_buffer": {**GROWING, "buffer_init": "zero"},
    "inrank_one_rate": {**GROWING, "lr_factor": 1.0},
}
RANK_OF = {"fixed": "inrank", "fixed_95": "inrank_95", "fixed_mlp": "inrank_mlp", "fixed_cola": "inrank"}
"""Whose mean rank a row of fixed rank takes."""


def run(row: str, seed: int, matrix_lr: float, pictures: Path | None) -> dict[str, Any]:
    """Train once and return what came out."""
    task = TextTask(TextConfig(model="tiny", corpus="english", seq_len=SEQ_LEN, max_held_out_tokens=60_000), seed=seed)
    model = task.build_model()
    dense_numel = sum(p.numel() for p in model.parameters())
    method = method_of(row)
    if method is not None:
        fw.apply(model, method)
    groups: list[dict[str, Any]] = [{"params": [(n, p) for n, p in model.named_parameters() if p.requires_grad]}]
    groups = scale_matrix_lr(groups, model, LR, matrix_lr / LR)
    groups = groups if method is None else method.param_groups(model, LR, groups)
    optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=0.1)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    checks_s, peaks, freezing, began = 0.0, {}, {}, time.process_time()
    for step, batch in enumerate(itertools.islice(task.batches("train", micro_batch_size=BATCH, seed=seed), STEPS), 1):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, step / 20)
        is_measured = {FREEZE_STEP - 1: "growing", STEPS: "fixed"}.get(step)
        with fw.measure_memory(model, optimizer) if is_measured else nullcontext() as memory:
            total, items = task.loss(model, batch)
            (total / items).backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            optimizer.step()
        if is_measured:
            peaks[is_measured] = memory.peak_bytes
        optimizer.zero_grad()
        if method is not None:
            if step == FREEZE_STEP:
                freezing["loss_before_freezing"] = round(loss_of(model, task, first=0), 5)
            start = time.process_time()
            method.after_step(model, optimizer, step)
            checks_s += time.process_time() - start
            if step == FREEZE_STEP:
                freezing["loss_after_freezing"] = round(loss_of(model, task, first=0), 5)
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
        "validation_loss": round(loss_of(model, task, first=0), 5),
        "test_loss": round(loss_of(model, task, first=1), 5),
        "mean_rank": round(sum(ranks) / len(ranks), 2) if ranks else "",
        "smallest_rank": min(ranks, default=""),
        "largest_rank": max(ranks, default=""),
        "mean_rank_share": round(sum(layer_shares(layers)) / len(layers), 4) if layers else 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dense_parameters": dense_numel,
        "layer_flops_share": round(factored / replaced, 4) if replaced else 1,
        "peak_bytes_growing": peaks.get("growing", ""),
        "peak_bytes_fixed": peaks.get("fixed", ""),
        "cpu_s_per_step": round(seconds / STEPS, 4),
        "checks_share": round(checks_s / seconds, 5),
        "loss_before_freezing": freezing.get("loss_before_freezing", ""),
        "loss_after_freezing": freezing.get("loss_after_freezing", ""),
    }


def method_of(row: str) -> fw.InRank | None:
    """Return the method of a row, or None for dense layers."""
    options = ROWS[row]
    if options is None:
        return None
    if row in RANK_OF:
        grown = chosen(RANK_OF[row])
        if not grown:
            raise SystemExit(f"bench inrank: row {row} takes the rank of {RANK_OF[row]}. Run that row first.")
        return fw.InRank(init_rank=round(float(grown[0]["mean_rank"])), **options)
    return fw.InRank(**options)


def chosen(row: str) -> list[dict[str, str]]:
    """Return the runs of a row at the rate with the lowest validation loss on seed 0, by seed."""
    mine = [found for found in read_rows(NAME) if found["row"] == row]
    first = min((r for r in mine if r["seed"] == "0"), key=lambda r: float(r["validation_loss"]), default=None)
    if first is None:
        return []
    return sorted((r for r in mine if r["matrix_lr"] == first["matrix_lr"]), key=lambda r: int(r["seed"]))


def layer_shares(layers: dict[str, Any]) -> list[float]:
    """Return rank over full rank of each layer."""
    return [layer.rank / min(layer.in_features, layer.out_features) for layer in layers.values()]


def loss_of(model: nn.Module, task: TextTask, first: int) -> float:
    """Return the loss a byte of every second held-out row: the even ones (`first` 0) choose, the odd ones (1) judge."""
    total, items = 0.0, 0
    with torch.no_grad():
        rows = range(first, task.row_count("held_out"), 2)
        for start in range(0, len(rows), 16):
            loss, count = task.loss(model, task.collate("held_out", rows[start : start + 16]))
            total, items = total + loss.item(), items + count
    return total / items


def table() -> None:
    """Print the rows, each at the rate that was chosen for it."""
    heads = ("row", "rate of matrices", "loss by seed", "mean", "standard error", "over dense", "rank share")
    heads += ("parameters", "FLOPs share", "peak MiB, fixed", "CPU s a step")
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    dense = mean(chosen("dense"), "test_loss")
    for row in ROWS:
        runs = chosen(row)
        if not runs:
            continue
        losses = [float(r["test_loss"]) for r in runs]
        error = statistics.stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else float("nan")
        cells = [row, runs[0]["matrix_lr"], " / ".join(f"{loss:.3f}" for loss in losses)]
        cells += [f"{statistics.mean(losses):.3f}", f"{error:.3f}", f"{statistics.mean(losses) / dense - 1:+.1%}"]
        cells += [f"{mean(runs, 'mean_rank_share'):.1%}", f"{mean(runs, 'parameters'):,.0f}"]
        cells += [f"{mean(runs, 'layer_flops_share'):.2f}", f"{mean(runs, 'peak_bytes_fixed') / 2**20:.1f}"]
        print("| " + " | ".join([*cells, f"{mean(runs, 'cpu_s_per_step'):.3f}"]) + " |")


def mean(runs: list[dict[str, str]], column: str) -> float:
    """Return the mean of a column."""
    return statistics.mean(float(run[column]) for run in runs)


def main() -> None:
    """Run what is missing of the wanted rows, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    for row in arguments.rows.split(",") if not arguments.table else ():
        for matrix_lr in MATRIX_RATES:
            run_missing(row, SEEDS[0], matrix_lr, arguments.pictures)
        for seed in SEEDS[1:]:
            run_missing(row, seed, float(chosen(row)[0]["matrix_lr"]), arguments.pictures)
    table()


def run_missing(row: str, seed: int, matrix_lr: float, pictures: Path | None) -> None:
    """Make a run and its line in the CSV unless it stands there."""
    if any((r["row"], int(r["seed"]), float(r["matrix_lr"])) == (row, seed, matrix_lr) for r in read_rows(NAME)):
        return
    result = run(row, seed, matrix_lr, pictures)
    write_rows(NAME, [result])
    print(result, flush=True)


if __name__ == "__main__":
    main()
