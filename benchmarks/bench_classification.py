"""Classification of a real encoder: full AdamW against GaLore of rank 8, accuracy on test data.

    scripts/bench classification --data data_full.json --model FOLDER [--steps 500] [--batch 32] [--seeds 0 1]
                                 [--runs adamw:5e-4 galore:2e-3] [--work FOLDER]

The data are CLINC150 (Larson et al., arXiv 1909.02027), data_full.json: 15,000 training and 4,500 test questions of 150
intents; the model is an encoder such as all-MiniLM-L6-v2 (22.7 M parameters), float32, with a new head. Both optimizers
see the same micro-batches under the same seed, warm up over 10 % and decay linearly to zero; GaLore trains the
embeddings and the head in full, as it does in the paper on GLUE. A run that is interrupted goes on when it is started
again; a finished one is not repeated. Each run writes one row.
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
    """Write the training and test questions of CLINC150 as tables of text and label."""
    splits = json.loads(source.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(splits[name])


def recipe(options: argparse.Namespace, optimizer: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the run of one optimizer."""
    return {
        "task": {
            "name": "classification",
            "model": options.model,
            "data": str(options.work / "train.csv"),
            "held_out": str(options.work / "test.csv"),
            "max_tokens": 64,
        },
        "optimizer": optimizer,
        "schedule": {"name": "linear", "warmup_fraction": 0.1, "final_fraction": 0.0},
        "steps": options.steps,
        "micro_batch_size": options.batch,
        "seed": seed,
        "evaluate_at_start": False,
        "save_model": False,
        "checkpoint_every": max(1, options.steps // 5),
    }


def main() -> None:
    """Train what is asked for and write a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", nargs="+", default=["adamw:5e-4", "galore:2e-3"])
    parser.add_argument("--work", type=Path, default=Path("runs/classification"))
    options = parser.parse_args()
    write_tables(options.data, options.work)
    for seed in options.seeds:
        for one in options.runs:
            name, lr = one.split(":")
            rank = {"rank": 8} if name.startswith("galore") else {}
            folder = options.work / f"{name}-{lr}-{options.batch}x{options.steps}-seed{seed}"
            is_new = not (folder / "summary.json").exists()
            started = time.process_time()
            run = fw.train(
                recipe(options, {"name": name, "lr": float(lr), **rank}, seed), out=folder, resume=folder.exists()
            )
            measured = run.summary.held_out
            row = {
                "optimizer": name,
                "lr": lr,
                "rank": rank.get("rank", ""),
                "seed": seed,
                "steps": options.steps,
                "batch": options.batch,
                **{
                    key: round(measured[key] or 0.0, 4) for key in ("held_out_loss", "accuracy", "macro_f1", "matthews")
                },
                "optimizer_state_bytes": run.summary.footprint.measured.get("optimizer_state"),
                "processor_s": round(time.process_time() - started, 1),
            }
            print(run.folder, row)
            if is_new:
                print(write_rows("classification", [row]))


if __name__ == "__main__":
    main()
