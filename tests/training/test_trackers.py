"""Other places to log to."""

import importlib.util
import warnings

import pytest

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.training import trackers
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
    monkeypatch.setattr(tracking, "_available_trackers", [*tracking._available_trackers, tracking.LoggerType.WANDB])
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: tracking._available_trackers)
    train(recipe(trackers=["wandb"], log_every=4, name="demo"), out=tmp_path / "run", callbacks=[])
    assert (seen["project"], seen["name"], seen["dir"]) == ("demo", "run", str(tmp_path / "run"))
    assert seen["config"]["optimizer.lr"] == 0.01 and [step for step, _ in seen["logged"]] == [0, 4, 8, 8]
