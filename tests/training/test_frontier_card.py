"""`scripts/bench frontier_card --smoke`: all parts of the benchmark for a card run on a CPU, too, and write no rows."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "bench_frontier_card.py"
pytestmark = pytest.mark.slow


def rows(part):
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    command = [sys.executable, PROGRAM, "--smoke", "--parts", part]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before
    return [ast.literal_eval(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_copies_have_a_rate_in_both_directions_at_once():
    (row,) = rows("link")
    assert 0 < row["each_way_of_both_gib_s"] <= 1.5 * max(row["to_device_gib_s"], row["to_host_gib_s"])


def test_weights_on_the_host_are_read_twice_and_written_once():
    """Four layers in two slots: all come in forward, two more backward; all that was trained goes back."""
    found = rows("hidden")
    assert [row["what"].split(",")[0] for row in found] == ["chunks of 32", "chunks of 64"]
    for row in found:
        assert 2 * row["written_gib"] > row["read_gib"] > row["written_gib"] > 0
        assert 0 <= row["idle_share_host"] < 1


def test_every_way_of_training_a_long_row_runs():
    found = rows("tokens")
    assert [row["what"] for row in found] == [
        "layer_major",
        "layer_major_keep",
        "mst_offload",
        "checkpointing",
        "fsdp2_offload",
    ]
    assert all(row["tokens_s"] > 0 and not row["failed"] for row in found)


def test_a_row_that_fails_says_why(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    bench = importlib.import_module(PROGRAM.stem)
    found = bench.ask(bench.SMOKE, "tokens", {"way": "checkpointing", "length": -1})
    assert list(found) == ["failed"] and found["failed"].endswith("(status 1)") and "Error" in found["failed"]


def test_the_simulated_peak_is_that_of_the_run():
    (row,) = rows("peak")
    assert row["error"] == pytest.approx(0, abs=0.01)
    assert row["step_s"] > 0
