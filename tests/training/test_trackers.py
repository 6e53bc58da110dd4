"""Other places to log to."""

import importlib.util
import json
import os
import subprocess
import sys
import warnings

import pytest

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.training import tracker_names, trackers
from featherweight.training.metrics import read_metrics
from featherweight.training.run import train


def test_tensorboard_gets_losses_and_the_recipe(recipe, tmp_path):
    one = recipe(trackers=["tensorboard"], log_every=4, evaluate_every=4)
    run = train(one, out=tmp_path / "run", callbacks=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own reader uses what NumPy and protobuf are about to drop
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run.folder / "tracker")).Reload()
        losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
        held_out = [event.step for event in events.Scalars("held_out/held_out_loss")]
    expected = {line["step"]: line["loss"] for line in read_metrics(run.folder / "metrics.jsonl") if "loss" in line}
    assert [step for step, _ in losses] == [4, 8] and held_out == [0, 4, 8]
    assert losses[0][1] == pytest.approx(expected[4], rel=1e-6)  # TensorBoard stores float32


def test_an_unknown_or_missing_tracker_is_named_before_training(recipe, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="trackers=tensorbord is unknown.*Did you mean 'tensorboard'"):
        train(recipe(trackers=["tensorbord"]), out=tmp_path / "a", callbacks=[])
    for name in ("aim", "wandb", "trackio"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(
                MissingExtraError, match=f"^recipe: trackers={name} is not installed.*pip install {name}$"
            ):
                train(recipe(trackers=[name]), out=tmp_path / "b", callbacks=[])
    assert not (tmp_path / "b").exists()
    assert trackers.flatten({"a": {"b": None}}) == {"a.b": "None"}


def test_a_service_gets_the_project_and_the_name_of_the_run(recipe, tmp_path, monkeypatch):
    """W&B itself wants an account or a process of its own; accelerate's tracker is asked what it would be given."""
    from accelerate import tracking

    seen = {}

    class Service(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "wandb", False, None

        def __init__(self, run_name, **options):
            super().__init__()
            seen.update(project=run_name, **options)

        def store_init_configuration(self, values):
            seen["config"] = values

        def log(self, values, step=None, **options):
            seen.setdefault("logged", []).append((step, sorted(values)))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Service)
    monkeypatch.setattr(tracker_names, "find_spec", lambda name: True)
    monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, tracking.LoggerType.WANDB])
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: tracking._available_trackers)
    train(recipe(trackers=["wandb"], log_every=4, name="demo"), out=tmp_path / "run", callbacks=[])
    assert (seen["project"], seen["name"], seen["dir"]) == ("demo", "run", str(tmp_path / "run"))
    assert seen["config"]["optimizer.lr"] == 0.01 and [step for step, _ in seen["logged"]] == [0, 4, 8, 8]


def test_the_names_are_those_of_the_installed_accelerate():
    from accelerate.utils import LoggerType

    assert tracker_names.known_trackers() == tuple(name for name in LoggerType.list() if name != "all")


PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")  # what these packages and theirs are about to drop
from featherweight.training.run import train
from featherweight.training.task import tasks
tasks.register("regression", "regression_task:RegressionTask")
train(json.loads(sys.argv[1]), out=sys.argv[2], callbacks=[])
"""


def train_with(tracker, tmp_path, **environment):
    """Train a small recipe with a tracker in a process of its own, as these packages start threads and processes."""
    pytest.importorskip(tracker, reason=f"pip install {tracker}", exc_type=ImportError)
    recipe = {
        "task": {"name": "regression", "hidden": 16},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "steps": 8,
        "micro_batch_size": 4,
        "log_every": 4,
        "trackers": [tracker],
        "name": "demo",
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(recipe), str(tmp_path / "run")]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    done = subprocess.run(
        command, env={**os.environ, **paths, **environment}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return tmp_path / "run"


def records_of(content):
    """Yield the records of a file of W&B: a log of LevelDB behind seven bytes of its own.

    Blocks of 32 KiB hold parts, each behind a checksum, its length and its kind: whole, first, middle or last.
    """
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no room for another head
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.slow  # a process that imports torch and the package
def test_wandb_offline_keeps_losses_and_the_recipe_in_the_run_folder(tmp_path):
    folder = train_with("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    from wandb.proto import wandb_internal_pb2

    file = next((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    losses, config, run = {}, {}, None
    for data in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {(one.key or ".".join(one.nested_key)): json.loads(one.value_json) for one in record.history.item}
            if "train/loss" in row:
                losses[row["_step"]] = row["train/loss"]
        run = record.run if record.WhichOneof("record_type") == "run" else run
        for one in [*record.run.config.update, *record.config.update]:
            config[one.key or ".".join(one.nested_key)] = json.loads(one.value_json)
    assert (run.project, run.display_name) == ("demo", "run")
    expected = {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}
    assert losses == {step: pytest.approx(expected[step]) for step in (4, 8)}
    assert config["optimizer.lr"] == 0.01 and config["steps"] == 8


@pytest.mark.slow  # a process that imports torch and the package
def test_trackio_keeps_losses_on_this_machine(tmp_path):
    folder = train_with("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    import sqlite3

    file = next((tmp_path / "trackio").glob("*.db"))
    with sqlite3.connect(file) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    logged = {step: row for _, step, metrics in rows if "train/loss" in (row := json.loads(metrics))}
    expected = {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}
    assert file.stem == "demo" and {name for name, *_ in rows} == {"run"}
    assert {step: row["train/loss"] for step, row in logged.items()} == {
        step: pytest.approx(expected[step]) for step in (4, 8)
    }
