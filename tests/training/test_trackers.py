"""Other places to log to."""

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
    with pytest.raises(MissingExtraError, match="trackers=aim is not installed.*pip install aim"):
        train(recipe(trackers=["aim"]), out=tmp_path / "b", callbacks=[])
    assert trackers.flatten({"a": {"b": None}}) == {"a.b": "None"}
