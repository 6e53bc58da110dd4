import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from featherweight.cli import run

REFERENCE = Path(__file__).parents[1] / "reference"
LAUNCHER = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from featherweight.training.task import tasks\n"
    "tasks.register('regression', 'regression_task:RegressionTask')\n"
    "from featherweight.cli import main\n"
    "main(sys.argv[2:])"
)


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LAUNCHER, str(REFERENCE), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_train_prints_the_result_and_where_the_report_lies(recipe_file, tmp_path, capsys):
    assert run(["train", str(recipe_file), "optimizer.rank=2", "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "held-out loss" in text and "optimizer state" in text
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in text
    assert "rank: 2" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_json_is_one_object_on_standard_output_and_a_second_run_in_the_folder_is_refused(recipe_file, tmp_path, capsys):
    arguments = ["train", str(recipe_file), "--out", str(tmp_path / "run"), "--json"]
    assert run(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["folder"] == str(tmp_path / "run") and result["steps"] == 4
    footprint = result["footprint"]
    assert footprint["measured"]["optimizer_state"] == footprint["predicted"]["optimizer_state"] > 0
    assert run(arguments) == 2 and "already holds a run" in capsys.readouterr().err


def test_the_recipe_of_long_sequences_trains_as_without_its_method(tmp_path, capsys):
    recipe = Path(__file__).parents[2] / "examples" / "recipes" / "long_sequence.yaml"
    # Two rows of 1024 tokens: long enough that the rules of chunk sizes cut them.
    small = [
        "task.model=tiny",
        "task.corpus=english",
        "task.seq_len=1024",
        "task.max_train_tokens=5000",
        "task.max_held_out_tokens=2048",
    ]
    small += ["steps=2", "micro_batch_size=2", "optimizer.rank=8", "save_model=false", "memory_steps=[2]", "--json"]
    results = []
    for changes in ([], ["methods=[]"]):
        assert run(["train", str(recipe), *small, *changes, "--out", str(tmp_path / str(len(results)))]) == 0
        results.append(json.loads(capsys.readouterr().out))

    losses = [result["held_out"]["held_out_loss"] for result in results]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)  # 8-bit moments round float32 differences up
    peaks = [result["footprint"]["peak_bytes"] for result in results]
    assert peaks[0] < 0.5 * peaks[1]


def test_ctrl_c_shows_the_command_that_goes_on_and_another_process_ends_bit_by_bit_the_same(recipe_file, tmp_path):
    # 2 ms of work and 15 ms of sleep per step: time enough to be interrupted on a busy machine.
    changes = ["task.dropout=0.2", "task.delay_s=0.015", "steps=100", "optimizer.update_proj_gap=7"]
    out = tmp_path / "run"
    process = start(["train", str(recipe_file), *changes, "--out", str(out)])
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count('"step"') > 15):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    resume = errors.splitlines()[-1]
    assert resume.startswith("Resume with: fw train ") and resume.endswith(f"--out {out} --resume")
    assert "Traceback" not in errors
    checkpoint = next((out / "checkpoints").iterdir()).name
    assert "step-00000007" <= checkpoint < "step-00000100"
    assert run(resume.removeprefix("Resume with: fw ").split()) == 0
    assert run(["train", str(recipe_file), *changes, "--out", str(tmp_path / "through"), "--json"]) == 0
    resumed, through = (
        torch.load(folder / "model" / "weights.pt", weights_only=True) for folder in (out, tmp_path / "through")
    )
    assert all(torch.equal(resumed[name], through[name]) for name in through)
    losses = [
        [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (out, tmp_path / "through")
    ]
    assert losses[0] == losses[1]
