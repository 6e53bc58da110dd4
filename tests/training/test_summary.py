"""The outcome of a run in numbers."""

import json
import math

import pytest

from featherweight.errors import CheckpointError
from featherweight.training.footprint import Footprint
from featherweight.training.summary import Summary, comparison_report, finite, run_report
from featherweight.training.task import Words


@pytest.fixture
def summary():
    return Summary(
        optimizer={"name": "adamw", "lr": 0.01},
        steps=4,
        items=64,
        training_loss=1.5,
        held_out={"held_out_loss": 2.0, "accuracy": None},
        before_training={"held_out_loss": 3.0},
        items_per_s=10.0,
        skipped_steps=2,
        task={"task": "points"},
        footprint=Footprint(predicted={"weights": 2048}, measured={"weights": 2048}, peak_bytes=4096),
        words=Words(items="points", metrics=("accuracy",)),
    )


def test_a_summary_survives_its_file(summary, tmp_path):
    summary.save(tmp_path / "summary.json")
    assert Summary.load(tmp_path / "summary.json") == summary


def test_an_older_summary_says_tokens(summary, tmp_path):
    content = json.loads(json.dumps(summary.to_dict()))
    for name in ("items", "items_per_s"):
        content[name.replace("items", "tokens")] = content.pop(name)
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert Summary.load(tmp_path / "old.json").items == 64


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_what_is_no_summary_is_one_sentence(text, tmp_path):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read .* Delete it to train again"):
        Summary.load(tmp_path / "summary.json")


def test_metrics_that_are_not_finite_are_none():
    assert finite({"a": math.nan, "b": math.inf, "c": 1.0}) == {"a": None, "b": None, "c": 1.0}


def test_reports_use_the_words_of_the_task_and_say_what_was_left_out(summary):
    line = {"event": "step", "step": 1, "loss": 2.0, "points": 16}
    report = comparison_report("both", {"adamw": (summary, [line])}, "a machine")
    table = report.section("Methods")
    assert {"held-out loss", "accuracy", "points/s", "weights (KiB)"} <= set(table.columns)
    row = dict(zip(table.columns, table.rows[1], strict=True))
    assert row["weights (KiB)"] == "2.0 / 2.0" and row["peak (KiB)"] == 4.0 and row["points/s"] == 10.0
    for one in (report, run_report("one", summary, [line], "a machine")):
        assert "2 updates" in one.section("Gradients that were not finite").text
