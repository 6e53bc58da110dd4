"""Fine-tuning a real encoder: all weights by AdamW against GaLore, Q-GaLore and adapters; accuracy on test data.

    scripts/bench classification --data data_full.json --model FOLDER [--steps 160] [--methods adamw galore_8]
    scripts/bench classification --table                       # the table of docs/results.md

The data are CLINC150 (Larson et al., arXiv 1909.02027), data_full.json: 15,000 training, 3,000 validation and 4,500
test questions of 150 intents. Every method has three learning rates on seed 0 (some rows of the CSV
have a fourth); the one with the highest accuracy on the
validation questions also trains on seeds 1 and 2, and accuracy on the test questions is reported. The model is an
encoder such as all-MiniLM-L6-v2 (22.7 M parameters), float32, with a new head. All see the same micro-batches under the
same seed, warm up over 10 % and decay linearly to zero. GaLore trains embeddings and head in full, as it does in the
paper on GLUE; adapters train the head in full. A run that is interrupted goes on when it is started again; a finished
one is not repeated.
"""

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

from measurement import read_rows, write_rows

import featherweight as fw
from featherweight.text.classification_task import ClassificationConfig, ClassificationTask
from featherweight.training import Callback
from featherweight.training.events import Event

NAME = "classification"
SEEDS = (0, 1, 2)
FULL, LOW, ADAPTER = (5e-4, 1e-3, 2e-3), (5e-3, 1e-2, 2e-2), (2e-3, 4e-3, 8e-3)
# Method: (optimizer, methods, learning rates).
METHODS: dict[str, tuple[dict[str, Any], list[Any], tuple[float, ...]]] = {
    "adamw": ({"name": "adamw"}, [], FULL),
    # Matrices at a quarter of the rate of embeddings and head, as GaLore has them.
    "adamw_two_rates": ({"name": "adamw", "matrix_lr_factor": 0.25}, [], (1e-3, 2e-3, 4e-3, 8e-3)),
    "galore_8": ({"name": "galore", "rank": 8}, [], LOW),
    "lora_8": ({"name": "adamw"}, [{"lora": {"r": 8, "lora_alpha": 16}}], ADAPTER),
    "galore_64": ({"name": "galore", "rank": 64}, [], LOW),
    "q_galore_8": ({"name": "q_galore", "rank": 8}, [], LOW),
    "lora_8_4bit": ({"name": "adamw"}, ["base4bit", {"lora": {"r": 8, "lora_alpha": 16}}], ADAPTER),
    "galore_4": ({"name": "galore", "rank": 4}, [], LOW),
}


class Measured(Callback):
    """Accuracy on the validation questions, by the run itself, and on the test questions at its end."""

    def __init__(self, task: ClassificationTask) -> None:
        self.task = task
        self.validation: dict[str, float] = {}
        self.test: dict[str, float] = {}

    def on_evaluate(self, event: Event) -> None:
        """Keep what the run has measured."""
        self.validation = dict(event.metrics)

    def on_end(self, event: Event) -> None:
        """Measure on the test questions."""
        if event.step == event.recipe.steps:
            self.test = self.task.evaluate(event.model, micro_batch_size=100)


def write_tables(source: Path, folder: Path) -> None:
    """Write the training, validation and test questions of CLINC150 as tables of text and label."""
    splits = json.loads(source.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val", "test"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(splits[name])


def recipe(options: argparse.Namespace, method: str, lr: float, seed: int) -> dict[str, Any]:
    """Return a run."""
    optimizer, methods, _ = METHODS[method]
    return {
        "task": {"name": "classification", **data(options, "val")},
        "optimizer": {**optimizer, "lr": lr},
        "methods": methods,
        "schedule": {"name": "linear", "warmup_fraction": 0.1, "final_fraction": 0.0},
        "steps": options.steps,
        "micro_batch_size": options.batch,
        "seed": seed,
        "evaluate_at_start": False,
        "save_model": False,
        "checkpoint_every": options.steps,
        "keep_checkpoints": 1,
    }


def data(options: argparse.Namespace, split: str) -> dict[str, Any]:
    """Return the task's options, with one split held out."""
    files = {"data": str(options.work / "train.csv"), "held_out": str(options.work / f"{split}.csv")}
    return {"model": options.model, **files, "max_tokens": 64}


def run(options: argparse.Namespace, test: ClassificationTask, method: str, lr: float, seed: int) -> None:
    """Train once and write the row, unless it stands there."""
    if any((row["method"], float(row["lr"]), int(row["seed"])) == (method, lr, seed) for row in read_rows(NAME)):
        return
    folder = options.work / f"{method}-{lr:g}-{options.batch}x{options.steps}-seed{seed}"
    measured, started = Measured(test), time.process_time()
    done = fw.train(recipe(options, method, lr, seed), out=folder, resume=folder.exists(), callbacks=[measured])
    footprint = done.summary.footprint
    row = {
        "method": method,
        "lr": lr,
        "seed": seed,
        "steps": options.steps,
        "batch": options.batch,
        "validation_accuracy": round(measured.validation["accuracy"], 5),
        "test_accuracy": round(measured.test["accuracy"], 5),
        "test_loss": round(measured.test["held_out_loss"], 4),
        "test_macro_f1": round(measured.test["macro_f1"], 5),
        "optimizer_state_bytes": footprint.measured.get("optimizer_state"),
        "peak_bytes": footprint.peak_bytes,
        "processor_s": round(time.process_time() - started, 1),
    }
    write_rows(NAME, [row])
    print(row, flush=True)


def chosen(method: str) -> list[dict[str, str]]:
    """Return the runs of a method at the rate that the validation questions chose on seed 0, by seed."""
    mine = [row for row in read_rows(NAME) if row["method"] == method]
    first = max((r for r in mine if r["seed"] == "0"), key=lambda r: float(r["validation_accuracy"]), default=None)
    runs = [row for row in mine if first is not None and row["lr"] == first["lr"]]
    return sorted(runs, key=lambda row: int(row["seed"]))


def table() -> None:
    """Print the rows at the chosen rates."""
    heads = ("method", "rate (validation, seed 0)", "test accuracy by seed", "mean", "standard error", "state", "peak")
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for method in METHODS:
        runs = chosen(method)
        if not runs:
            continue
        tried = [row for row in read_rows(NAME) if row["method"] == method and row["seed"] == "0"]
        rates = ", ".join(f"{float(row['lr']):g}: {float(row['validation_accuracy']):.1%}" for row in tried)
        found = [float(row["test_accuracy"]) for row in runs]
        error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
        state, peak = (int(runs[0][key]) / 1e6 for key in ("optimizer_state_bytes", "peak_bytes"))
        print(
            f"| {method} | {float(runs[0]['lr']):g} ({rates}) | {' / '.join(f'{one:.1%}' for one in found)} | "
            f"{statistics.mean(found):.1%} | {error:.1%} | {state:.0f} MB | {peak:.0f} MB |"
        )


def main() -> None:
    """Run what the CSV lacks, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--work", type=Path, default=Path("runs/classification"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table()
        return
    if options.data is None or options.model is None:
        parser.error("--data (data_full.json of CLINC150) and --model (a folder) are needed")
    write_tables(options.data, options.work)
    test = ClassificationTask(ClassificationConfig(**data(options, "test")), seed=0)
    for method in options.methods:
        for lr in METHODS[method][2]:
            run(options, test, method, lr, SEEDS[0])
        for seed in SEEDS[1:]:
            run(options, test, method, float(chosen(method)[0]["lr"]), seed)
    table()


if __name__ == "__main__":
    main()
