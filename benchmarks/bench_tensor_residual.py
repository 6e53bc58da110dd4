"""A residual without state for tensors: does it close the gap to AdamW, and at which weight?

`scripts/bench tensor_residual` trains small neural operators by every method at every learning rate with seed 0, then
at the two best rates with two more seeds, one row a run in results/tensor_residual.csv; rows that are there are not
repeated. Every method has the same rates. Rates, weights and kinds are chosen by the H1 error on validation samples
that no test sample is among; `--report` prints the errors on the test samples at what was chosen.

Darcy and Navier-Stokes as in bench_pde.py, twice as many held-out samples: the first half validates, the second tests.
navier_stokes_t4 (to time 4, 16 x 16 modes) and burgers choose nothing but the rate of each method: what is tried there
are the winners of the other four.
"""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_pde import GAP, PROBLEMS, Training, numbers
from measurement import RESULTS, machine

from featherweight.pde import PdeConfig, PdeTask

_NAVIER_STOKES = PROBLEMS["navier_stokes"]["task"]
JUDGED: dict[str, dict[str, Any]] = {
    "navier_stokes_t4": {
        "task": _NAVIER_STOKES
        | {"problem_options": {"steps": 400, "final_time": 4.0, "viscosity": 1e-3}, "n_modes": [16, 16]},
        "batch": 10,
        "epochs": 24,
    },
    "burgers": {
        "task": {"data": "burgers", "resolution": 128, "n_train": 500, "n_test": 100, "n_modes": [24]}
        | {"hidden_channels": 24, "n_layers": 3},
        "batch": 25,
        "epochs": 24,
        "rates": (5e-3, 1e-2, 2e-2, 3e-2),
    },
}
CHOOSING = ("navier_stokes_long", "darcy", "navier_stokes", "darcy_long")
ALL = {**{name: PROBLEMS[name] for name in CHOOSING}, **JUDGED}
_TUCKER: dict[str, Any] = {"name": "tensor_galore", "proj_type": "tucker", "residual": None}
_CHANNELS = {**_TUCKER, "proj_type": "tucker_channels"}
_CHANNELS_8BIT = {**_CHANNELS, "name": "tensor_galore_8bit", "rank": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "adamw_8bit": {"name": "adamw_8bit"},
    "tucker_25": _TUCKER,
    "channels_25": _CHANNELS,
    "channels_50_8bit": _CHANNELS_8BIT,
}
for _name, _options in (("tucker_25", _TUCKER), ("channels_25", _CHANNELS), ("channels_50_8bit", _CHANNELS_8BIT)):
    for _weight in (0.1, 0.3, 1.0):
        METHODS[f"{_name}_w{_weight:g}"] = {**_options, "residual": "equalized", "residual_weight": _weight}
# What the subspace still buys: next to none of it, the residual does the work.
for _name, _rank in (("channels_05_w1", 0.05), ("channels_one_w1", 1)):
    METHODS[_name] = {**_CHANNELS, "rank": _rank, "residual": "equalized", "residual_weight": 1.0}
RATES = (1e-2, 2e-2, 3e-2, 5e-2)
SEEDS = (0, 1, 2)
ERRORS = ("validation_h1", "validation_l2", "h1", "l2")
FIELDS = ("problem", "method", "lr", "seed", *ERRORS, "state_bytes", "cpu_s")
FINALISTS = 2


def main() -> None:
    """Run what is missing, or report what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", default=",".join(CHOOSING), help=f"of {', '.join(ALL)}, separated by commas")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=numbers(int), default=SEEDS, help="the first sweeps the rates")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--results", type=Path, default=RESULTS / "tensor_residual.csv")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.results)
        return
    began = time.monotonic()
    for problem in arguments.problems.split(","):
        task = prepared(problem)
        for method in arguments.methods.split(","):
            for lr, seed in planned(arguments, problem, method):
                if time.monotonic() - began > 60 * arguments.minutes:
                    return
                row = run(task, problem, method, lr, seed)
                append(arguments.results, row)
                print(row, flush=True)


def prepared(problem: str) -> PdeTask:
    """Return the task with its held-out samples in halves: `validation`, then `test`."""
    options = ALL[problem]["task"]
    task = PdeTask(PdeConfig(**{**options, "n_test": 2 * options["n_test"]}), seed=0)
    (held_out,) = task.tests.values()
    half = options["n_test"]
    task.tests = {
        "validation": replace(held_out, x=held_out.x[:half], y=held_out.y[:half]),
        "test": replace(held_out, x=held_out.x[half:], y=held_out.y[half:]),
    }
    return task


def planned(arguments: argparse.Namespace, problem: str, method: str) -> Iterator[tuple[float, int]]:
    """Yield (lr, seed) of the runs that are missing: the sweep, then more seeds of its best rates."""
    first, others = arguments.seeds[0], arguments.seeds[1:]
    yield from ((lr, first) for lr in rates_of(problem) if (lr, first) not in done(arguments.results, problem, method))
    found = done(arguments.results, problem, method)
    best = sorted(rates_of(problem), key=lambda lr: float(found[lr, first]["validation_h1"]))[:FINALISTS]
    yield from ((lr, seed) for lr in best for seed in others if (lr, seed) not in found)


def rates_of(problem: str) -> tuple[float, ...]:
    """Return the rates that every method has on a problem."""
    return ALL[problem].get("rates", RATES)


def done(path: Path, problem: str, method: str) -> dict[tuple[float, int], dict[str, str]]:
    """Return the rows of finished runs by (lr, seed)."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {
            (float(row["lr"]), int(row["seed"])): row
            for row in csv.DictReader(file)
            if (row["problem"], row["method"]) == (problem, method)
        }


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row, with the machine."""
    complete = {**row, **machine()}
    is_new = not path.exists()
    if not is_new and (found := next(csv.reader(path.read_text().splitlines()), [])) != list(complete):
        sys.exit(f"bench tensor_residual: {path} has columns={found}; expected {list(complete)}. Give another file.")
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(complete))
        if is_new:
            writer.writeheader()
        writer.writerow(complete)


def run(task: PdeTask, problem: str, method: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once and return the row."""
    how = ALL[problem]
    task.seed = seed
    batch, steps = how["batch"], how["epochs"] * (len(task.train) // how["batch"])
    options = METHODS[method]
    gap = {} if options["name"].startswith("adamw") else {"update_proj_gap": GAP}
    training = Training(task, {"lr": lr, **gap, **options}, steps)
    batches = task.batches("train", micro_batch_size=batch, seed=seed)
    began = time.process_time()
    for _ in range(steps):
        training.step(next(batches))
    seconds = time.process_time() - began
    found = task.evaluate(training.model, micro_batch_size=50)
    errors = (found["h1"], found["l2"], found["h1_test"], found["l2_test"])
    return {
        "problem": problem,
        "method": method,
        "lr": lr,
        "seed": seed,
        **{name: round(error, 6) for name, error in zip(ERRORS, errors, strict=True)},
        "state_bytes": training.optimizer.state_bytes(),
        "cpu_s": round(seconds, 2),
    }


def report(path: Path) -> None:
    """Print, for each problem, the test errors of each method at the rate that validation chose."""
    for problem in ALL:
        chosen = {name: runs for name in METHODS if (runs := best_runs(done(path, problem, name)))}
        if "adamw" not in chosen:
            continue
        print(f"\n{problem}\n| method | rate | H1 | standard error | over AdamW's | L2 | validation H1 | state |")
        print("|---|---|---|---|---|---|---|---|")
        base_h1, base_bytes = mean(chosen["adamw"], "h1"), float(chosen["adamw"][0]["state_bytes"])
        for name, runs in chosen.items():
            h1 = [float(run["h1"]) for run in runs]
            error = statistics.stdev(h1) / len(h1) ** 0.5
            print(
                f"| {name} | {runs[0]['lr']} | {mean(runs, 'h1'):.4f} | {error:.4f} "
                f"| {mean(runs, 'h1') / base_h1 - 1:+.1%} | {mean(runs, 'l2'):.4f} | {mean(runs, 'validation_h1'):.4f} "
                f"| {float(runs[0]['state_bytes']) / base_bytes:.2f} |"
            )


def mean(runs: list[dict[str, str]], key: str) -> float:
    """Return the mean of a column."""
    return statistics.mean(float(run[key]) for run in runs)


def best_runs(found: dict[tuple[float, int], dict[str, str]]) -> list[dict[str, str]]:
    """Return the runs at the rate of least validation error among those with all seeds; empty if there is none."""
    rates = sorted({lr for lr, _ in found if all((lr, seed) in found for seed in SEEDS)})
    runs = [[found[lr, seed] for seed in SEEDS] for lr in rates]
    return min(runs, key=lambda one: mean(one, "validation_h1"), default=[])


if __name__ == "__main__":
    main()
