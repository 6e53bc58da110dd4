"""A disk without room: one clear sentence, nothing half-written, nothing of the user's lost."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "reference" / "full_disk.py"
RUN = ["run", "run/environment.json", "run/metrics.jsonl", "run/recipe.yaml"]
"""What a run leaves that can be resumed once there is room; no weights and no temporary file among it."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what the commands said on a disk of 2 MiB, which only their process sees."""
    disk, work = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("work")
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, to mount a small disk for one process")
    mount = ["unshare", "-rm", "bash", "-c", f"mount -t tmpfs -o size=2m tmpfs '{disk}' && exec \"$@\"", "bash"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("needs a system that lets a process mount a small disk for itself")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1", "COLUMNS": "1000"}
    command = [*mount, sys.executable, str(SCRIPT), str(disk), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


CASES = {
    "export": (r"out=\S+ needs about 4.\d\d MiB, and its disk has [12].\d\d MiB free", []),
    "train": (
        r"run: out=\S+ needs at least 6.\d\d MiB for the trained weights, and its disk has [12].\d\d MiB free",
        [],
    ),
    "compress": (r"compress: out=\S+ needs about [234].\d\d MiB, and its disk has [12].\d\d MiB free", []),
    "export, later": ("export: out=.*cannot be written .*No space left", []),
    "train, later": ("save_model: folder=.*cannot be written .*No space left", RUN),
    "a checkpoint, later": ("checkpoint: folder=.*cannot be written .*No space left.*then resume", RUN),
    "train, full": ("recipe.yaml cannot be written .No space left", []),
    "sweep, full": ("cannot be written .No space left", []),
    "init, full": ("demo.yaml cannot be written .No space left", []),
    "evaluate, full": ("report.json cannot be written .No space left", []),
    "/save, full": ("talk.jsonl cannot be written .No space left", []),
}


@pytest.mark.slow  # trains and exports small models for half a minute
@pytest.mark.parametrize("label", CASES)
def test_a_disk_without_room_is_told_in_a_sentence_and_holds_nothing_half_written(found, label):
    sentence, stays = CASES[label]
    code, told, left = found[label]
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert code in (1, 2) and len(errors) == 1 and re.search(sentence, errors[0]), told
    assert left == ["mine.txt", *stays] and "Traceback" not in told


@pytest.mark.slow
def test_each_point_of_a_sweep_says_that_the_disk_is_full(found):
    code, told, left = found["sweep"]
    assert code == 1 and told.count("needs at least") == 2
    assert left == [
        "mine.txt",
        *(f"sweep{name}" for name in ("", "/points.csv", "/report.csv", "/report.html", "/report.json")),
    ]
