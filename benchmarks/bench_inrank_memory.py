"""Training memory and arithmetic of GPT-2 medium with dense layers and with factors, by formula and by simulation.

    scripts/bench inrank_memory              # writes results/inrank_gpt2_medium.csv and prints it; a minute, no GPU

The paper's shapes: hidden 1024, 24 layers, 1,024 tokens a row, rank 287 (what the official code found with 90 %
explained), in the feed-forward layers alone as there, or in attention, too. `formula` is what the planner and a run's
report say of weights, gradients and moments; `peak` is the largest moment of a simulated step of the training loop on a
GPU, allocation by allocation. FLOPs are counted operation by operation in the same step, forward and backward.
"""

import argparse
import csv
from typing import Any

from measurement import RESULTS
from rich.console import Console
from rich.table import Table

import featherweight as fw

NAME = "inrank_gpt2_medium"
MODEL = {
    "model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 50257,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
RANK = 287
MLP = r".*mlp\.c_(fc|proj)"
FIXED: dict[str, Any] = {"init_rank": RANK, "buffer": 0, "freeze_step": 1}
ROWS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "feed-forward, rank 287": {**FIXED, "target_modules": MLP},
    "feed-forward, growing (buffer of 100 beyond 287)": {"init_rank": RANK, "buffer": 100, "target_modules": MLP},
    "all linear layers, rank 287": FIXED,
}
PARTS = ("weights", "gradients", "optimizer state", "activations")


def row_of(name: str, rows: int, checkpointing: bool) -> dict[str, Any]:
    """Simulate one row of the table."""
    options = ROWS[name]
    recipe = {
        "task": {"name": "text", "model": MODEL, "weights": "random", "seq_len": 1024},
        "methods": [] if options is None else [{"inrank": options}],
        "optimizer": "adamw",
        "micro_batch_size": rows,
        "activation_checkpointing": checkpointing,
        "steps": 100,
    }
    found = fw.estimate_memory(None, recipe, device="cuda")
    at_peak = {str(category): size for category, size in found.peak_by_category.items()}
    return {
        "row": name,
        "rows_of_1024_tokens": rows,
        "checkpointing": checkpointing,
        **{f"formula_{key}_bytes": size for key, size in found.predicted.items()},
        "formula_bytes": sum(found.predicted.values()),
        "peak_bytes": found.peak_bytes,
        "peak_by_category": "; ".join(f"{key} {size}" for key, size in at_peak.items()),
        "step_flops": sum(found.cost.flops.values()),
        "tokens": found.tokens_per_step,
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=8, help="rows of 1,024 tokens in a step; the paper has 8 a GPU")
    arguments = parser.parse_args()
    settings = [(arguments.rows, False), (1, True)]
    found = [row_of(name, rows, checkpointing) for rows, checkpointing in settings for name in ROWS]
    with (RESULTS / f"{NAME}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    table = Table("layers", "tokens", "checkpointing", "weights, gradients, moments (GiB)", "peak (GiB)", "TFLOP")
    for row in found:
        dense = next(one for one in found if one["row"] == "dense" and one["tokens"] == row["tokens"])
        cells = [row["row"], f"{row['tokens']:,}", str(row["checkpointing"])]
        for key, unit in (("formula_bytes", 2**30), ("peak_bytes", 2**30), ("step_flops", 1e12)):
            cells.append(f"{row[key] / unit:.2f} ({row[key] / dense[key] - 1:+.0%})")
        table.add_row(*cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
