"""torchrun: killed ranks, signals, one command line for the first start and every restart."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

pytestmark = pytest.mark.slow
"""Each start takes ten seconds or more."""

REFERENCE = Path(__file__).parents[1] / "reference"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
RECIPE = {
    "task": {"name": "regression", "double": True, "dropout": 0.2},
    "optimizer": {"name": "galore", "rank": 1, "lr": 0.01, "update_proj_gap": 5, "layerwise": True},
    "steps": 30,
    "micro_batch_size": 4,
    "accumulation_steps": 4,
    "memory_steps": [],
    "checkpoint_every": 3,
    "save_model": True,
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def launch(words, *, processes=2, restarts=0, kill=None):
    command = [*TORCHRUN, str(processes), "--max-restarts", str(restarts), str(REFERENCE / "launched_run.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REFERENCE.parents[1]}:{REFERENCE}"}
    if kill is not None:
        environment["KILL"] = kill
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process, seconds=240):
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output, errors


def weights(folder):
    return torch.load(folder / "model" / "weights.pt", weights_only=True)


def test_a_run_whose_ranks_are_killed_ends_with_the_weights_of_an_undisturbed_one(recipe, tmp_path):
    code, _, errors = finish(launch(["train", str(recipe), "--out", str(tmp_path / "whole"), "--resume"]))
    assert code == 0, errors
    for number, (rank, step) in enumerate([(1, 7), (0, 11), (1, 1)]):
        out = tmp_path / f"killed-{number}"
        words = ["train", str(recipe), "--out", str(out), "--resume"]
        code, _, errors = finish(launch(words, restarts=1, kill=f"{rank}:{step}:{tmp_path / f'marker-{number}'}"))
        assert code == 0, errors
        assert (tmp_path / f"marker-{number}").exists()
        one, two = weights(tmp_path / "whole"), weights(out)
        assert all(torch.equal(one[name], two[name]) for name in one), (rank, step)


PLACES = {
    "ddp": ["sharding=ddp"],
    "fsdp2": ["sharding=fsdp2"],
    "columns": ["sharding={kind: fsdp2, basis: sharded}", "optimizer.proj_type=left"],
}
"""Replicas, rows, and columns of weights with shares of bases."""


@pytest.mark.parametrize("kind", PLACES)
def test_a_run_that_is_killed_twenty_times_ends_with_the_weights_of_an_undisturbed_one(recipe, tmp_path, kind):
    # A rank, all ranks, or the launcher, ten times under each sharding, at random steps; the launcher is started anew
    # as a scheduler would. Bitwise, as the number of processes stays. Mutation: a checkpoint that is taken for complete
    # before its manifest is there, random numbers that begin anew.
    words = ["train", str(recipe), *PLACES[kind], "--resume"]
    code, _, errors = finish(launch([*words, "--out", str(tmp_path / "whole")]))
    assert code == 0, errors
    choose = random.Random(kind)
    steps = sorted(choose.sample(range(1, RECIPE["steps"]), 10))
    kills = [(choose.choice(["0", "1", "0", "1", "all", "agent"]), step) for step in steps]
    kills[3] = ("agent", kills[3][1])
    text = ",".join(f"{who}:{step}:{tmp_path / f'kill-{step}'}" for who, step in kills)
    for _ in range(1 + sum(who == "agent" for who, _ in kills)):
        code, _, errors = finish(launch([*words, "--out", str(tmp_path / "killed")], restarts=10, kill=text), 1800)
        if code == 0:
            break
    assert code == 0, errors
    assert all(any(tmp_path.glob(f"kill-{step}*")) for step in steps)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_rank_without_restarts_ends_all_with_one_sentence_and_another_number_goes_on(recipe, tmp_path):
    out = tmp_path / "run"
    words = ["train", str(recipe), "--out", str(out)]
    code, _, errors = finish(launch(words, kill=f"1:8:{tmp_path / 'marker'}"))
    assert code != 0
    assert errors.count("error: distributed: a process of the group of 2 is gone") <= 1
    assert (out / "checkpoints" / "step-00000006" / "manifest.json").exists()
    code, _, errors = finish(launch([*words, "--resume"], processes=1))
    assert code == 0, errors
    assert json.loads((out / "summary.json").read_text())["steps"] == 30


def test_sigterm_ends_all_ranks_after_the_same_step_with_a_checkpoint(recipe, tmp_path):
    changes, out = ["task.delay_s=0.02", "task.dropout=0.2"], tmp_path / "run"
    process = launch(["train", str(recipe), *changes, "--out", str(out)])
    metrics, deadline = out / "metrics.jsonl", time.time() + 120
    while time.time() < deadline and not (metrics.exists() and metrics.read_text().count('"step"') > 6):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, _, errors = finish(process)
    assert code != 0 and errors.count("Resume with: fw train") == 1, errors
    code, _, errors = finish(launch(["train", str(recipe), *changes, "--out", str(out), "--resume"]))
    assert code == 0, errors
    code, _, errors = finish(launch(["train", str(recipe), *changes, "--out", str(tmp_path / "through")]))
    assert code == 0, errors
    one, two = weights(out), weights(tmp_path / "through")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_of_the_command_train_a_text_as_one(tmp_path):
    small = {"name": "text", "model": "tiny", "corpus": "english", "seq_len": 64}
    small |= {"max_train_tokens": 20000, "max_held_out_tokens": 1024}
    values = {
        "task": small,
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "steps": 4,
        "micro_batch_size": 2,
        "accumulation_steps": 2,
        "save_model": False,
        "memory_steps": [2],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "featherweight", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REFERENCE.parents[1])}
    losses, outputs = [], []
    for name, more in (("one", []), ("two", ["--nproc", "2"])):
        done = subprocess.run(
            [*command, "--out", str(tmp_path / name), *more],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["event"] == "step"])
        outputs.append(done)
    # float32 sums in another order, which four steps of Adam turn up.
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert "torchrun --standalone --nproc-per-node 2 -m featherweight train" in outputs[1].stderr
    assert outputs[1].stdout.count("Report:") == 1
    page = (tmp_path / "two" / "report.json").read_text()
    assert "Processes" in page and "sent by a rank in a step" in page


def test_two_workers_of_ray_train_train_one_run(recipe, tmp_path):
    pytest.importorskip("ray")
    values = {**RECIPE, "task": {"name": "text", "model": "tiny", "corpus": "english", "seq_len": 64}, "steps": 3}
    values["task"] |= {"max_train_tokens": 20000, "max_held_out_tokens": 1024}
    values["optimizer"] = {"name": "adamw", "lr": 1e-3}
    recipe.write_text(yaml.safe_dump({**values, "save_model": False}))
    example = REFERENCE.parents[1] / "examples" / "launch_ray.py"
    # A worker imports Ray, Arrow and torch before it answers, which takes minutes where others share the cores; after
    # 60 s Ray Train ends all workers and begins anew, and so forever.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "900"
    path = [str(REFERENCE.parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    command = [sys.executable, str(example), str(recipe), str(tmp_path / "run")]
    done = subprocess.run(
        command,
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 3
    assert "Processes" in (tmp_path / "run" / "report.json").read_text()
