"""Learning of neural operators: AdamW beside optimizers whose moments live in a core of the gradient tensor.

`scripts/bench pde` trains every method at every learning rate with seed 0, then the best rate of each with two more
seeds, and writes one row a run into results/pde.csv; a run whose row is there is not repeated, so the benchmark can be
stopped at any time. `--report` prints the table of what is there and draws pictures into `--pictures`.

Darcy: 500 + 100 samples of 16 x 16, generated here (coefficients 12 and 3, solved on 61 x 61), H1 loss, 120 steps.
Navier-Stokes: w(0) -> w(1), nu 1e-3, forced, 200 + 50 samples of 32 x 32, H1 loss, 120 steps. Both small enough for a
laptop: a run takes seconds on a free core.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measurement import RESULTS, machine

from featherweight.optim import build_optimizer, parse_optimizer
from featherweight.pde import PdeConfig, PdeTask, draw_fields, draw_spectra

PROBLEMS: dict[str, dict[str, Any]] = {
    "darcy": {
        "task": {"data": "darcy", "resolution": 16, "problem_options": {"refine": 4}, "n_train": 500, "n_test": 100}
        | {"n_modes": [8, 8], "hidden_channels": 16, "n_layers": 3},
        "batch": 25,
        "epochs": 6,
    },
    "navier_stokes": {
        "task": {"data": "navier_stokes", "resolution": 32, "problem_options": {"steps": 100}, "n_train": 200}
        | {"n_test": 50, "n_modes": [12, 12], "hidden_channels": 12, "n_layers": 3},
        "batch": 10,
        "epochs": 6,
    },
}
GAP = 25
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "matrix_d1_25": {"name": "tensor_galore", "proj_type": "matrix", "first_dims": 1},
    "matrix_d2_25": {"name": "tensor_galore", "proj_type": "matrix", "first_dims": 2},
    "tucker_25": {"name": "tensor_galore"},
    "tucker_25_8bit": {"name": "tensor_galore_8bit"},
    "tucker_25_frozen": {"name": "tensor_galore", "update_proj_gap": 10**6},
    "tucker_25_keep": {"name": "tensor_galore", "moment_policy": "keep"},
    "tucker_05": {"name": "tensor_galore", "rank": 0.05},
    "channels_25": {"name": "tensor_galore", "proj_type": "tucker_channels"},
    "slices_25": {"name": "tensor_galore", "proj_type": "slices"},
    "tensorgrad_20_5": {"name": "tensorgrad"},
}
RATES = (1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)
FIELDS = ("problem", "method", "lr", "seed", "l2", "h1", "h1_periodic", "state_bytes", "step_ms", "optimizer_ms", "s")


def main() -> None:
    """Run what is missing, or report what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", choices=PROBLEMS, default="darcy")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--results", type=Path, default=RESULTS / "pde.csv")
    parser.add_argument("--predictions", type=Path, default=None, help="keep predictions of each run here")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--pictures", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments)
        return
    began = time.monotonic()
    task = PdeTask(PdeConfig(**PROBLEMS[arguments.problem]["task"]), seed=0)
    for method in arguments.methods.split(","):
        for lr, seed in planned(arguments, method):
            if time.monotonic() - began > 60 * arguments.minutes:
                return
            row = run(task, arguments, method, lr, seed)
            append(arguments.results, row)
            print({key: row[key] for key in FIELDS}, flush=True)


def planned(arguments: argparse.Namespace, method: str) -> Any:
    """Yield (lr, seed) of the runs that are missing, the sweep first."""
    for lr in RATES:
        if (lr, 0) not in done(arguments, method):
            yield lr, 0
    sweep = {lr: row for (lr, seed), row in done(arguments, method).items() if seed == 0}
    best = min(sweep, key=lambda lr: float(sweep[lr]["h1"]))
    for seed in SEEDS[1:]:
        if (best, seed) not in done(arguments, method):
            yield best, seed


def done(arguments: argparse.Namespace, method: str) -> dict[tuple[float, int], dict[str, str]]:
    """Return the rows of finished runs by (lr, seed)."""
    return {
        (float(row["lr"]), int(row["seed"])): row
        for row in rows(arguments.results)
        if row["problem"] == arguments.problem and row["method"] == method
    }


def rows(path: Path) -> list[dict[str, str]]:
    """Return all rows."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row, with the machine."""
    facts = machine()
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, [*FIELDS, "curve", *facts])
        if is_new:
            writer.writeheader()
        writer.writerow({**row, **facts})


def run(task: PdeTask, arguments: argparse.Namespace, method: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once and return the row."""
    problem = PROBLEMS[arguments.problem]
    task.seed = seed
    model = task.build_model()
    options = {"lr": lr, **({} if method == "adamw" else {"update_proj_gap": GAP}), **METHODS[method]}
    optimizer = build_optimizer(model, parse_optimizer(options), seed=seed)
    batch, steps = problem["batch"], problem["epochs"] * (len(task.train) // problem["batch"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = task.batches("train", micro_batch_size=batch, seed=seed)
    times, own, curve, began = [], [], [], time.perf_counter()
    for step in range(steps):
        start = time.perf_counter()
        loss, count = task.loss(model, next(batches))
        (loss / count).backward()
        middle = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        optimizer.zero_grad()
        schedule.step()
        times.append(1e3 * (end - start))
        own.append(1e3 * (end - middle))
        if (step + 1) % (steps // 10) == 0:
            curve.append(round(task.evaluate(model, micro_batch_size=50)["l2"], 5))
    metrics = task.evaluate(model, micro_batch_size=50)
    if arguments.predictions is not None and seed == 0:
        arguments.predictions.mkdir(parents=True, exist_ok=True)
        pairs = next(iter(task.tests.values()))
        found = task.predict(model, pairs.x, micro_batch_size=50)
        torch.save(found, arguments.predictions / f"{arguments.problem}_{method}_{lr:g}.pt")
    return {
        "problem": arguments.problem,
        "method": method,
        "lr": lr,
        "seed": seed,
        **{key: round(metrics[key], 6) for key in ("l2", "h1", "h1_periodic")},
        "state_bytes": optimizer.state_bytes(),
        "step_ms": round(statistics.median(times), 2),
        # The mean, as refreshes are rare and dear.
        "optimizer_ms": round(statistics.mean(own[1:]), 3),
        "s": round(time.perf_counter() - began, 1),
        "curve": " ".join(map(str, curve)),
    }


def report(arguments: argparse.Namespace) -> None:
    """Print a table of the best rate of each method, and draw fields, spectra and curves."""
    import featherweight.report

    summary = featherweight.report.Report(f"Learning on {arguments.problem}")
    table, curves, predictions = [], {}, {}
    base = None
    for method in METHODS:
        found = done(arguments, method)
        rates = {lr for lr, seed in found if all((lr, each) in found for each in SEEDS)}
        if not rates:
            continue
        best = min(rates, key=lambda lr: float(found[lr, 0]["h1"]))
        runs = [found[best, seed] for seed in SEEDS]
        middle = {k: statistics.median(float(one[k]) for one in runs) for k in FIELDS[4:10]}
        spread = max(float(one["l2"]) for one in runs) - min(float(one["l2"]) for one in runs)
        base = base or middle
        share = middle["state_bytes"] / base["state_bytes"]
        table.append(
            [method, best, middle["l2"], spread, middle["h1"], middle["h1_periodic"], share]
            + [middle["optimizer_ms"], middle["step_ms"]]
        )
        values = [float(value) for value in runs[0]["curve"].split()]
        curves[method] = ([0.1 * (i + 1) for i in range(len(values))], values)
        if arguments.predictions is not None:
            path = arguments.predictions / f"{arguments.problem}_{method}_{best:g}.pt"
            if path.exists():
                predictions[method] = torch.load(path)[:, 0]
    columns = [
        "method",
        "lr",
        "rel. L2",
        "spread",
        "H1",
        "H1, periodic",
        "state / AdamW",
        "optimizer (ms)",
        "step (ms)",
    ]
    summary.add_table("Medians of three seeds at the best rate of each", columns, table)
    summary.add_curves("Test error over training", "share of the steps", "relative L2 error", curves, log_y=True)
    summary.print_terminal()
    if arguments.pictures is not None:
        summary.save_picture(arguments.pictures / f"{arguments.problem}_curves.png", "Test error over training")
        shown = {name: predictions[name] for name in ("adamw", "tucker_25") if name in predictions}
        task = PdeTask(PdeConfig(**PROBLEMS[arguments.problem]["task"]), seed=0)
        pairs = next(iter(task.tests.values()))
        draw_fields(arguments.pictures / f"{arguments.problem}_fields.png", pairs.x[:, 0], pairs.y[:, 0], shown)
        wanted = ("adamw", "matrix_d1_25", "tucker_25", "tucker_05", "slices_25")
        shown = {name: predictions[name] for name in wanted if name in predictions}
        draw_spectra(arguments.pictures / f"{arguments.problem}_spectra.png", pairs.y[:, 0], shown)


if __name__ == "__main__":
    sys.exit(main())
