"""Learning of neural operators: AdamW beside optimizers whose moments live in a core of the gradient tensor.

`scripts/bench pde` trains every method at every learning rate of one grid with seed 0, then the two best rates of each
with two more seeds (one seed alone may be lucky at one rate), and writes one row a run into results/pde.csv; a run
whose row is there is not repeated, so the benchmark can be stopped at any time. `--report` prints the table of the rows
of this grid and draws pictures into `--pictures`.

Times are ratios. Every run trains a twin with AdamW beside it, a step of the twin after every fourth of its own, so
that a busy machine hits both; the row holds the times of both.

Darcy: 500 + 100 samples of 16 x 16, generated here (coefficients 12 and 3, solved on 61 x 61), H1 loss, 120 steps.
Navier-Stokes: w(0) -> w(1), nu 1e-3, forced, 200 + 50 samples of 32 x 32, H1 loss, 120 steps. Both small enough for a
laptop: a run takes seconds on a free core. In 120 steps some runs of Navier-Stokes have not left the plateau of the
first steps, whatever the method; darcy_long and navier_stokes_long are the same with 480.

Variants of single options are run when `--methods` names them, with `--rates` and `--seeds` for less than the grid.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measurement import RESULTS, machine

from featherweight.optim import build_optimizer, parse_optimizer
from featherweight.pde import PdeConfig, PdeTask, draw_fields, draw_spectra
from featherweight.report import Report

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
PROBLEMS["darcy_long"] = {**PROBLEMS["darcy"], "epochs": 24}
PROBLEMS["navier_stokes_long"] = {**PROBLEMS["navier_stokes"], "epochs": 24}
GAP = 25
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "matrix_d1_25": {"name": "tensor_galore", "proj_type": "matrix", "first_dims": 1},
    "matrix_d2_25": {"name": "tensor_galore", "proj_type": "matrix", "first_dims": 2},
    "tucker_25": {"name": "tensor_galore"},
    "tucker_25_8bit": {"name": "tensor_galore_8bit"},
    "tucker_25_frozen": {"name": "tensor_galore", "update_proj_gap": 10**6},
    "tucker_25_keep": {"name": "tensor_galore", "moment_policy": "keep"},
    "tucker_25_auto": {"name": "tensor_galore", "rank": "auto"},
    "tucker_05": {"name": "tensor_galore", "rank": 0.05},
    "tucker_05_auto": {"name": "tensor_galore", "rank": "auto", "rank_budget": 0.05},
    "channels_25": {"name": "tensor_galore", "proj_type": "tucker_channels"},
    "slices_25": {"name": "tensor_galore", "proj_type": "slices"},
    "tensorgrad_20_5": {"name": "tensorgrad"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "adamw_b99": {"name": "adamw", "betas": [0.9, 0.99]},
    "tucker_25_gap10": {"name": "tensor_galore", "update_proj_gap": 10},
    "tucker_25_gap50": {"name": "tensor_galore", "update_proj_gap": 50},
    "tucker_25_scale1": {"name": "tensor_galore", "scale": 1.0},
    "tucker_25_align": {"name": "tensor_galore", "moment_policy": "align"},
    "tucker_25_auto_gap10": {"name": "tensor_galore", "rank": "auto", "update_proj_gap": 10},
    "tucker_25_auto_gap50": {"name": "tensor_galore", "rank": "auto", "update_proj_gap": 50},
    "tucker_25_auto_scale1": {"name": "tensor_galore", "rank": "auto", "scale": 1.0},
    "tucker_25_auto_keep": {"name": "tensor_galore", "rank": "auto", "moment_policy": "keep"},
    "tucker_25_auto_b99": {"name": "tensor_galore", "rank": "auto", "betas": [0.9, 0.99]},
    "channels_25_auto": {"name": "tensor_galore", "proj_type": "tucker_channels", "rank": "auto"},
}
for _options in METHODS.values():  # as the paper has it, where a row says nothing else: all modes, the rest is dropped
    if _options["name"].startswith("tensor_galore"):
        _options.update({"proj_type": "tucker", "residual": None} | _options)
RATES = (1e-2, 2e-2, 3e-2, 5e-2, 1e-1)
SEEDS = (0, 1, 2)
ERRORS = ("l2", "h1", "h1_periodic")
TIMES = ("step_ms", "optimizer_ms", "adamw_step_ms", "adamw_optimizer_ms")
FIELDS = ("problem", "method", "lr", "seed", *ERRORS, "state_bytes", *TIMES, "s", "curve")
FINALISTS = 2
DRAWN = ("adamw", "matrix_d1_25", "tucker_25", "tucker_25_auto", "tucker_05", "slices_25", "tensorgrad_20_5")
TWIN_EVERY = 4


def main() -> None:
    """Run what is missing, or report what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", choices=PROBLEMS, default="darcy")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rates", type=numbers(float), default=RATES, help="of the grid, separated by commas")
    parser.add_argument("--seeds", type=numbers(int), default=SEEDS, help="the first sweeps the rates")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--results", type=Path, default=RESULTS / "pde.csv")
    parser.add_argument("--predictions", type=Path, default=None, help="keep predictions of each run here")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--pictures", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments)
        return
    check_header(arguments.results)
    began = time.monotonic()
    task = PdeTask(PdeConfig(**PROBLEMS[arguments.problem]["task"]), seed=0)
    for method in arguments.methods.split(","):
        for lr, seed in planned(arguments, method):
            if time.monotonic() - began > 60 * arguments.minutes:
                return
            row = run(task, arguments, method, lr, seed)
            append(arguments.results, row)
            print({key: row[key] for key in FIELDS if key != "curve"}, flush=True)


def numbers(kind: type) -> Callable[[str], tuple[Any, ...]]:
    """Return a reader of numbers that are separated by commas."""
    return lambda text: tuple(kind(one) for one in text.split(","))


def planned(arguments: argparse.Namespace, method: str) -> Iterator[tuple[float, int]]:
    """Yield (lr, seed) of the runs that are missing or have no times of AdamW beside them, the sweep first."""

    def is_missing(lr: float, seed: int) -> bool:
        return not done(arguments, method).get((lr, seed), {}).get("adamw_step_ms")

    rates, first, others = arguments.rates, arguments.seeds[0], arguments.seeds[1:]
    yield from ((lr, first) for lr in rates if is_missing(lr, first))
    found = done(arguments, method)
    best = sorted(rates, key=lambda lr: float(found[lr, first]["h1"]))[:FINALISTS]
    yield from ((lr, seed) for lr in best for seed in others if is_missing(lr, seed))


def done(arguments: argparse.Namespace, method: str) -> dict[tuple[float, int], dict[str, str]]:
    """Return the rows of finished runs of the grid by (lr, seed); of a repeated run the last."""
    return {
        (float(row["lr"]), int(row["seed"])): row
        for row in rows(arguments.results)
        if (row["problem"], row["method"]) == (arguments.problem, method) and float(row["lr"]) in RATES
    }


def rows(path: Path) -> list[dict[str, str]]:
    """Return all rows."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def check_header(path: Path) -> None:
    """Refuse to add rows to a file with other columns."""
    columns = [*FIELDS, *machine()]
    if path.exists() and (found := next(csv.reader(path.read_text().splitlines()), [])) != columns:
        sys.exit(f"bench pde: {path} has columns={found}; expected {columns}. Give another file as --results.")


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row, with the machine."""
    complete = {**row, **machine()}
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(complete))
        if is_new:
            writer.writeheader()
        writer.writerow(complete)


class Training:
    """A network, its optimizer and schedule, and how long its steps took."""

    def __init__(self, task: PdeTask, options: dict[str, Any], steps: int) -> None:
        self.task = task
        self.model = task.build_model()
        self.optimizer = build_optimizer(self.model, parse_optimizer(options), seed=task.seed)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.step_ms: list[float] = []
        self.optimizer_ms: list[float] = []

    def step(self, batch: Any) -> None:
        """Make one step of the training and note its times."""
        start = time.perf_counter()
        loss, count = self.task.loss(self.model, batch)
        (loss / count).backward()
        middle = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step_ms.append(1e3 * (end - start))
        self.optimizer_ms.append(1e3 * (end - middle))

    def times(self, prefix: str = "") -> dict[str, float]:
        """Return the median of a step, and the mean of the optimizer's part, as refreshes are rare and dear."""
        return {
            f"{prefix}step_ms": round(statistics.median(self.step_ms), 2),
            f"{prefix}optimizer_ms": round(statistics.mean(self.optimizer_ms[1:]), 3),
        }


def run(task: PdeTask, arguments: argparse.Namespace, method: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once, beside a twin with AdamW that is there for its times only, and return the row."""
    problem = PROBLEMS[arguments.problem]
    task.seed = seed
    batch, steps = problem["batch"], problem["epochs"] * (len(task.train) // problem["batch"])
    options = {**METHODS, **VARIANTS}[method]
    gap = {} if options["name"] == "adamw" else {"update_proj_gap": GAP}
    training = Training(task, {"lr": lr, **gap, **options}, steps)
    twin = Training(task, {"lr": lr, **METHODS["adamw"]}, steps)
    batches = task.batches("train", micro_batch_size=batch, seed=seed)
    curve, began = [], time.perf_counter()
    for step in range(steps):
        sample = next(batches)
        training.step(sample)
        if step % TWIN_EVERY == 0:
            twin.step(sample)
        if (step + 1) % (steps // 10) == 0:
            curve.append(round(task.evaluate(training.model, micro_batch_size=50)["l2"], 5))
    metrics = task.evaluate(training.model, micro_batch_size=50)
    if arguments.predictions is not None and seed == 0:
        arguments.predictions.mkdir(parents=True, exist_ok=True)
        pairs = next(iter(task.tests.values()))
        found = task.predict(training.model, pairs.x, micro_batch_size=50)
        torch.save(found, arguments.predictions / f"{arguments.problem}_{method}_{lr:g}.pt")
    return {
        "problem": arguments.problem,
        "method": method,
        "lr": lr,
        "seed": seed,
        **{key: round(metrics[key], 6) for key in ERRORS},
        "state_bytes": training.optimizer.state_bytes(),
        **training.times(),
        **twin.times("adamw_"),
        "s": round(time.perf_counter() - began, 1),
        "curve": " ".join(map(str, curve)),
    }


def report(arguments: argparse.Namespace) -> None:
    """Print a table of the best rate of each method, and draw fields, spectra and curves."""
    summary = Report(f"Learning on {arguments.problem}")
    table, curves, predictions = [], {}, {}
    for method in (*METHODS, *VARIANTS):
        found = done(arguments, method)
        best = best_rate(found)
        if best is None:
            continue
        runs = [found[best, seed] for seed in SEEDS]
        swept = sum((lr, SEEDS[0]) in found for lr in RATES)
        table.append([method, best, f"{swept} of {len(RATES)}", *figures(runs)])
        values = [float(value) for value in runs[0]["curve"].split()]
        if method not in DRAWN:
            continue
        curves[method] = ([0.1 * (i + 1) for i in range(len(values))], values)
        if arguments.predictions is not None:
            path = arguments.predictions / f"{arguments.problem}_{method}_{best:g}.pt"
            if path.exists():
                predictions[method] = torch.load(path)[:, 0]
    columns = [
        *("method", "lr", "rates tried", "rel. L2", "L2: largest - smallest", "H1", "H1: largest - smallest"),
        *("H1, periodic", "state (bytes)", "step / AdamW", "optimizer / AdamW"),
    ]
    summary.add_table("Means of three seeds at the best rate of each", columns, table)
    variants = [
        [method, lr, float(row["l2"]), float(row["h1"])]
        for method in (*METHODS, *VARIANTS)
        for (lr, seed), row in sorted(done(arguments, method).items())
        if seed == SEEDS[0]
    ]
    summary.add_table("Every rate with the first seed", ["method", "lr", "rel. L2", "H1"], variants)
    summary.add_curves("Test error over training", "share of the steps", "relative L2 error", curves, log_y=True)
    summary.print_terminal()
    if arguments.pictures is not None:
        draw(arguments, summary, predictions)


def best_rate(found: dict[tuple[float, int], dict[str, str]]) -> float | None:
    """Return the rate of least mean H1 error among those with all seeds; None if there is none."""
    complete = [lr for lr in RATES if all((lr, seed) in found for seed in SEEDS)]
    return min(complete, key=lambda lr: sum(float(found[lr, seed]["h1"]) for seed in SEEDS), default=None)


def figures(runs: list[dict[str, str]]) -> list[Any]:
    """Return the cells of a method from its runs: means and spreads of errors, bytes, times over AdamW's."""
    l2, h1, periodic = ([float(one[key]) for one in runs] for key in ERRORS)
    errors = [statistics.mean(l2), max(l2) - min(l2), statistics.mean(h1), max(h1) - min(h1), statistics.mean(periodic)]
    timed = [one for one in runs if one["adamw_step_ms"]]
    times = [
        statistics.median(float(one[key]) / float(one[f"adamw_{key}"]) for one in timed) if timed else None
        for key in TIMES[:2]
    ]
    return [*errors, int(runs[0]["state_bytes"]), *times]


def draw(arguments: argparse.Namespace, summary: Report, predictions: dict[str, torch.Tensor]) -> None:
    """Write the pictures of curves, fields and spectra."""
    summary.save_picture(arguments.pictures / f"{arguments.problem}_curves.png", "Test error over training")
    pairs = next(iter(PdeTask(PdeConfig(**PROBLEMS[arguments.problem]["task"]), seed=0).tests.values()))
    wanted: tuple[str, ...] = ("adamw", "tucker_25")
    shown = {name: predictions[name] for name in wanted if name in predictions}
    if not shown:
        return
    draw_fields(arguments.pictures / f"{arguments.problem}_fields.png", pairs.x[:, 0], pairs.y[:, 0], shown)
    wanted = ("adamw", "matrix_d1_25", "tucker_25", "tucker_05", "slices_25")
    shown = {name: predictions[name] for name in wanted if name in predictions}
    draw_spectra(arguments.pictures / f"{arguments.problem}_spectra.png", pairs.y[:, 0], shown)


if __name__ == "__main__":
    main()
