"""Who puts the cube into the bin, over which network: models of a hand, a policy, the hands helped by the policy.

    scripts/bench robot_policies [--policy runs/robot] [--runs 30] [--operators hand,policy,shared] [--cubes 1]
        [--networks "0ms 500ms+-30,1%"]

Layouts from 10000 on, which nobody learnt from; operator and robot run their real code in virtual time. Without a
policy one is trained first: 50 demonstrations of the expert, examples/recipes/robot_bc.yaml, about two minutes of one
core. One row for each run is appended to results/robot_policies.csv; runs whose row is there are not repeated, so that
the command goes on where it was stopped. The table is made from the rows.
"""

import argparse
import csv
import tempfile
import time
from dataclasses import asdict, fields
from pathlib import Path

from measurement import RESULTS, write_rows
from rich.console import Console
from rich.progress import track
from rich.table import Table

from featherweight.robot.challenge.run import ALONE, OPERATORS, parse_impairment, run_challenge
from featherweight.robot.challenge.score import Score
from featherweight.robot.challenge.summary import summarize
from featherweight.robot.learning.evaluation import FIRST_UNSEEN_SEED
from featherweight.robot.learning.policy import Policy, load_policy

NETWORKS = ("0ms", "150ms+-30,1%", "300ms+-30,1%")
MAX_AGE_MS = {"500ms+-30,1%": 500.0, "1000ms+-30,1%": 800.0}
"""Network -> age above which a command is dropped, where that of the safety pipeline would leave the arm held."""
ROOT = Path(__file__).parents[1]
FILE = RESULTS / "robot_policies.csv"
Key = tuple[str, str, int, int]
"""Operator, network, cubes, seed."""


def train_policy() -> Policy:
    """Return a policy of behaviour cloning, trained here."""
    import featherweight as fw
    from featherweight.robot.recording.demonstrations import demonstrate, expert_writer

    with tempfile.TemporaryDirectory() as folder:
        demos, run = Path(folder) / "demos", Path(folder) / "run"
        demonstrate(expert_writer(demos), range(50))
        fw.train(ROOT / "examples" / "recipes" / "robot_bc.yaml", overrides=[f"task.data={demos}"], out=run)
        return load_policy(run)


def read_scores() -> dict[Key, Score]:
    """Return the runs that were made before."""
    if not FILE.exists():
        return {}
    with FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {field.name: int if field.type in (int, "int") else float for field in fields(Score)}
    return {
        (row["operator"], row["network"], int(row["cubes"]), int(row["seed"])): Score(
            **{name: kind(row[name]) for name, kind in kinds.items()}
        )
        for row in rows
    }


def main() -> None:
    """Make the runs that are missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--operators", default=",".join(OPERATORS))
    parser.add_argument("--cubes", type=int, default=1)
    parser.add_argument("--networks", default=" ".join(NETWORKS), help="words with spaces between")
    arguments = parser.parse_args()
    seeds = range(FIRST_UNSEEN_SEED, FIRST_UNSEEN_SEED + arguments.runs)
    cells = [
        (operator, network) for operator in arguments.operators.split(",") for network in arguments.networks.split()
    ]
    keys: list[Key] = [(*cell, arguments.cubes, seed) for seed in seeds for cell in cells]
    done = read_scores()
    missing = [key for key in keys if key not in done]
    policy = None
    if any(operator not in ALONE for operator, *_ in missing):
        policy = train_policy() if arguments.policy is None else load_policy(arguments.policy)
    for key in track(missing, "running"):
        operator, network, cubes, seed = key
        start_s = time.process_time()
        score = run_challenge(
            operator, policy, seed, parse_impairment(network), cubes, max_age_ms=MAX_AGE_MS.get(network)
        )
        row = {"operator": operator, "network": network, "seed": seed, **asdict(score)}
        write_rows(FILE.stem, [{**row, "processor_s": round(time.process_time() - start_s, 2)}])
        done[key] = score
    table = Table(title=f"{arguments.runs} layouts from {seeds[0]} on, {arguments.cubes} cube(s); intervals hold 95 %")
    for column in ("operator", "round trip", "complete", "points", "time (s)", "spectral arc", "log jerk", "hold (s)"):
        table.add_column(column)
    for operator, network in cells:
        found = [done[operator, network, arguments.cubes, seed] for seed in seeds]
        row = summarize(found)
        low, high = row.complete_interval
        table.add_row(
            operator,
            network,
            f"{row.complete} of {row.runs} ({low:.2f} to {high:.2f})",
            f"{row.points:.1f} ({row.points_interval[0]:.1f} to {row.points_interval[1]:.1f})",
            f"{row.time_s:.1f} ({row.time_interval_s[0]:.1f} to {row.time_interval_s[1]:.1f})",
            f"{row.spectral_arc_length:.1f} "
            f"({row.spectral_arc_length_interval[0]:.1f} to {row.spectral_arc_length_interval[1]:.1f})",
            f"{row.log_jerk:.1f}",
            f"{row.hold_s:.2f}",
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
