"""Do ranks that grow by themselves learn as well as dense layers, and as ranks that somebody had to guess?

    scripts/bench inrank --seed 0 --rows dense,inrank_mlp,fixed_mlp,inrank_all,inrank_w0
    scripts/bench inrank --seed 0 --rows inrank_mlp,fixed_mlp,dense --lr 6e-3      # each method on its own rates
    scripts/bench inrank --table                                                   # means over seeds, pictures

Model: Llama, hidden 128, feed-forward 352, 4 layers, vocabulary of bytes; 300 steps of 8 x 128 tokens of the English
corpus, AdamW at a constant rate after 20 steps of warm-up, weight decay 0.1, clipping at 1. InRank: 90 % explained,
buffer 16, checks every 10 steps after step 10, ranks fixed at step 200 and the buffer dropped. Fixed rank: the mean
rank that InRank found with the same seed, same initialisation.
"""

import argparse
import csv
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from measurement import RESULTS, write_rows
from torch import nn

import featherweight as fw
from featherweight.methods.inrank import growth_state
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.text.task import TextConfig, TextTask

STEPS, BATCH, SEQ_LEN, LR = 300, 8, 128, 3e-3
FREEZE_STEP = 200
GROWING: dict[str, Any] = {"buffer": 16, "every": 10, "warmup": 10, "freeze_step": FREEZE_STEP, "patience": None}
MLP = r".*mlp\..*_proj"
ROWS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "inrank_mlp": {**GROWING, "target_modules": MLP},
    "fixed_mlp": {"buffer": 0, "warmup": STEPS, "target_modules": MLP},
    "inrank_all": GROWING,
    "inrank_all_random": {**GROWING, "buffer_init": "random"},
    "fixed_all": {"buffer": 0, "warmup": STEPS},
    "inrank_mlp_spectral": {**GROWING, "target_modules": MLP, "init": "spectral"},
    "inrank_mlp_random": {**GROWING, "target_modules": MLP, "buffer_init": "random"},
    "inrank_w0": {**GROWING, "target_modules": MLP, "keep_w0": True},
    "inrank_silu": {**GROWING, "target_modules": MLP, "activation": "silu"},
}


def rows_of(name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV."""
    path = RESULTS / f"{name}.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def run(row: str, seed: int, lr: float, explained: float, steps: int, pictures: Path | None) -> dict[str, Any]:
    """Train once and return what came out."""
    task = TextTask(TextConfig(model="tiny", corpus="english", seq_len=SEQ_LEN, max_held_out_tokens=60_000), seed=seed)
    model = task.build_model()
    dense_numel = sum(p.numel() for p in model.parameters())
    options = ROWS[row]
    method = None
    if options is not None:
        if row.startswith("fixed"):
            options = {**options, "init_rank": rank_found(row.replace("fixed", "inrank"), seed, lr)}
        if "freeze_step" in options:
            options = {**options, "freeze_step": min(FREEZE_STEP, steps)}
        method = fw.InRank(**{"explained": explained, **options})
        fw.apply(model, method)
    freeze_step = min(FREEZE_STEP, steps)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.1)
    checks_s = 0.0
    began = time.perf_counter()
    freezing: dict[str, float] = {}
    for step, batch in enumerate(itertools.islice(task.batches("train", micro_batch_size=BATCH, seed=seed), steps), 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 20)
        total, items = task.loss(model, batch)
        (total / items).backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if method is not None and "freeze_step" in (options or {}) and step == freeze_step:
            freezing["loss_before_freezing"] = round(loss_of(model, task), 5)
        start = time.perf_counter()
        if method is not None:
            method.after_step(model, optimizer, step)
        checks_s += time.perf_counter() - start
        if freezing and "loss_after_freezing" not in freezing:
            freezing["loss_after_freezing"] = round(loss_of(model, task), 5)
    seconds = time.perf_counter() - began
    layers = low_rank_modules(model)
    if pictures is not None and method is not None:
        report = method.report(model)
        pictures.mkdir(parents=True, exist_ok=True)
        report.save_picture(pictures / "inrank_ranks.png", "Rank over time")
        report.save_html(pictures / "inrank.html")
    ranks = [growth_state(model).ranks[name] for name in layers] if method is not None else []
    factored = sum(layer.rank * (layer.in_features + layer.out_features) for layer in layers.values())
    replaced = sum(layer.in_features * layer.out_features for layer in layers.values())
    return {
        "row": row,
        "seed": seed,
        "lr": lr,
        "explained": explained,
        "steps": steps,
        "held_out_loss": round(task.evaluate(model, micro_batch_size=16)["held_out_loss"], 5),
        "mean_rank": round(sum(ranks) / len(ranks), 2) if ranks else "",
        "smallest_rank": min(ranks, default=""),
        "largest_rank": max(ranks, default=""),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dense_parameters": dense_numel,
        "layer_flops_share": round(factored / replaced, 4) if replaced else 1,
        "seconds_per_step": round(seconds / steps, 4),
        "checks_share": round(checks_s / seconds, 5),
        "loss_before_freezing": freezing.get("loss_before_freezing", ""),
        "loss_after_freezing": freezing.get("loss_after_freezing", ""),
    }


def loss_of(model: nn.Module, task: TextTask) -> float:
    """Return the loss of one held-out batch."""
    batch = next(task.batches("held_out", micro_batch_size=16, seed=0))
    with torch.no_grad():
        total, items = task.loss(model, batch)
    return total.item() / items


def rank_found(row: str, seed: int, lr: float) -> int:
    """Return the mean rank that InRank found with the same seed and rate."""
    key = (row, str(seed), str(lr), str(STEPS))
    found = [float(r["mean_rank"]) for r in rows_of("inrank") if (r["row"], r["seed"], r["lr"], r["steps"]) == key]
    return round(found[0])


def table() -> None:
    """Print means over seeds; at each row the rate with the lowest loss on seed 0 is named."""
    rows = rows_of("inrank")
    keys = list(dict.fromkeys((r["row"], r["lr"], r["explained"], r["steps"]) for r in rows))
    print("| row | lr | explained | steps | loss by seed | mean | mean rank | parameters | FLOPs share | checks |")
    print("|---" * 10 + "|")
    for key in keys:
        mine = {r["seed"]: r for r in rows if (r["row"], r["lr"], r["explained"], r["steps"]) == key}
        losses = [float(r["held_out_loss"]) for r in mine.values()]
        ranks = [float(r["mean_rank"]) for r in mine.values() if r["mean_rank"]]
        numel = sum(int(r["parameters"]) for r in mine.values()) / len(mine)
        share = sum(float(r["layer_flops_share"]) for r in mine.values()) / len(mine)
        checks = max(float(r["checks_share"]) for r in mine.values())
        by_seed = " / ".join(f"{loss:.3f}" for loss in losses)
        mean_rank = f"{sum(ranks) / len(ranks):.1f}" if ranks else ""
        cells = [*key, by_seed, f"{sum(losses) / len(losses):.4f}", mean_rank]
        print("| " + " | ".join([*cells, f"{numel:,.0f}", f"{share:.2f}", f"{checks:.2%}"]) + " |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--explained", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    deadline = time.time() + arguments.seconds
    for row in arguments.rows.split(",") if arguments.seed is not None else ():
        key = (row, *map(str, (arguments.seed, arguments.lr, arguments.explained, arguments.steps)))
        known = {(r["row"], r["seed"], r["lr"], r["explained"], r["steps"]) for r in rows_of("inrank")}
        if key in known or time.time() > deadline:
            continue
        pictures = arguments.pictures if row == "inrank_all" else None
        result = run(row, arguments.seed, arguments.lr, arguments.explained, arguments.steps, pictures)
        write_rows("inrank", [result])
        print(result, flush=True)
    if arguments.table:
        table()


if __name__ == "__main__":
    main()
