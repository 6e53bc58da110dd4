"""Classification of a real encoder: full AdamW against GaLore of rank 8, accuracy on test data.

    scripts/bench classification --data data_full.json --model FOLDER [--steps 200] [--batch 32] [--seeds 0 1]
                                 [--adamw 2e-4 5e-4 1e-3] [--galore 2e-3 5e-3 1e-2] [--work FOLDER]

The data are CLINC150 (Larson et al., arXiv 1909.02027), data_full.json: 15,000 training, 3,000 validation and 4,500
test questions of 150 intents. Each rate of an optimizer trains on seed 0 and is measured on the validation questions;
the one with the highest accuracy there is then measured on the test questions, on every seed; the model is an encoder
such as all-MiniLM-L6-v2 (22.7 M parameters), float32, with a new head. Both optimizers see the same micro-batches under
the same seed, warm up over 10 % and decay linearly to zero; GaLore trains the embeddings and the head in full, as it
does in the paper on GLUE. A run that is interrupted goes on when it is started again; a finished one is not repeated.
Each run writes one row.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from measurement import write_rows

import featherweight as fw


def write_tables(source: Path, folder: Path) -> None:
    """Write the training, validation and test questions of CLINC150 as tables of text and label."""
    splits = json.loads(source.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val", "test"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(splits[name])


def recipe(options: argparse.Namespace, optimizer: dict[str, Any], seed: int, split: str) -> dict[str, Any]:
    """Return the run of one optimizer."""
    return {
        "task": {
            "name": "classification",
            "model": options.model,
            "data": str(options.work / "train.csv"),
            "held_out": str(options.work / f"{split}.csv"),
            "max_tokens": 64,
        },
        "optimizer": optimizer,
        "schedule": {"name": "linear", "warmup_fraction": 0.1, "final_fraction": 0.0},
        "steps": options.steps,
        "micro_batch_size": options.batch,
        "seed": seed,
        "evaluate_at_start": False,
        "save_model": False,
        "checkpoint_every": max(1, options.steps // 4),
        "keep_checkpoints": 1,
    }


def accuracy(options: argparse.Namespace, name: str, lr: float, seed: int, split: str) -> float:
    """Train once, write a row if the run is new, and return its accuracy."""
    rank = {"rank": 8} if name == "galore" else {}
    folder = options.work / f"{name}-{lr:g}-{options.batch}x{options.steps}-{split}-seed{seed}"
    is_new = not (folder / "summary.json").exists()
    started = time.process_time()
    settings = recipe(options, {"name": name, "lr": lr, **rank}, seed, split)
    run = fw.train(settings, out=folder, resume=folder.exists())
    measured = run.summary.held_out
    row = {
        "optimizer": name,
        "lr": lr,
        "rank": rank.get("rank", ""),
        "seed": seed,
        "steps": options.steps,
        "batch": options.batch,
        "measured_on": split,
        **{key: round(measured[key] or 0.0, 4) for key in ("held_out_loss", "accuracy", "macro_f1", "matthews")},
        "optimizer_state_bytes": run.summary.footprint.measured.get("optimizer_state"),
        "processor_s": round(time.process_time() - started, 1),
    }
    print(run.folder, row, flush=True)
    if is_new:
        print(write_rows("classification", [row]))
    return float(row["accuracy"])


def main() -> None:
    """Choose a rate for each optimizer, then measure it on the test questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--adamw", type=float, nargs="+", default=[2e-4, 5e-4, 1e-3])
    parser.add_argument("--galore", type=float, nargs="+", default=[2e-3, 5e-3, 1e-2])
    parser.add_argument("--work", type=Path, default=Path("runs/classification"))
    options = parser.parse_args()
    write_tables(options.data, options.work)
    for name in ("adamw", "galore"):
        found = {lr: accuracy(options, name, lr, 0, "val") for lr in getattr(options, name)}
        best = max(found, key=found.__getitem__)
        print(f"{name}: validation {found}, best {best:g}", flush=True)
        for seed in options.seeds:
            accuracy(options, name, best, seed, "test")


if __name__ == "__main__":
    main()
