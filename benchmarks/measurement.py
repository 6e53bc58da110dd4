"""What every benchmark needs: facts about the machine, repeated timing, and one CSV with a row for each result."""

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"


class Timing(NamedTuple):
    """Seconds of repeated runs of one thing."""

    runs_s: list[float]

    @property
    def median_s(self) -> float:
        """Median."""
        return statistics.median(self.runs_s)

    @property
    def fastest_s(self) -> float:
        """Fastest run: what the machine can do when nothing else disturbs it."""
        return min(self.runs_s)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.runs_s) - min(self.runs_s)) / self.median_s


def machine() -> dict[str, str]:
    """Return what a result depends on: processor or card, threads, versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def take_turns(candidates: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, Timing]:
    """Time several candidates in alternating rounds, so that a busy moment of the machine hits all of them.

    Args:
        candidates: name to function; each call is one run.
        rounds: measured runs of each.
        warm_up: runs of each that are not counted.
    """
    runs: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warm_up + rounds):
        for name, function in candidates.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if number >= warm_up:
                runs[name].append(time.perf_counter() - start)
    return {name: Timing(values) for name, values in runs.items()}


def synchronize() -> None:
    """Wait for the GPU if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def read_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of results/<name>.csv; none if there is no such file."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(name: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows to results/<name>.csv, each with the facts of the machine and the date; return the path.

    A file with other columns is left as it is, and the rows are printed.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    complete = [{**row, **machine(), "date": time.strftime("%Y-%m-%d")} for row in rows]
    is_new = not path.exists()
    if not is_new and (found := path.read_text().partition("\n")[0]) != ",".join(complete[0]):
        raise SystemExit(f"bench: {path} has the columns {found}; expected {','.join(complete[0])}. Not added: {rows}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(complete[0]), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(complete)
    return path
