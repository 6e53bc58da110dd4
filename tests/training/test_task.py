"""The words of tasks in summaries and reports; what every task must do is in tests/contracts/test_task.py."""

import json
from dataclasses import replace

import pytest

from featherweight import training
from featherweight.training.metrics import curve, read_metrics
from featherweight.training.run import train
from featherweight.training.summary import Summary, comparison_report, run_report
from featherweight.training.task import Words


def test_the_public_names_of_the_package_load_on_first_use():
    for name in training.__all__:
        assert getattr(training, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Recpie'"):
        training.Recpie  # noqa: B018


def test_files_and_reports_call_the_items_of_a_task_by_its_own_word(recipe, tmp_path):
    whole = train(recipe(), out=tmp_path / "whole", callbacks=[])
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    steps = [line for line in lines if line["event"] == "step"]
    assert whole.summary.items == steps[-1]["points"] > 0 and "tokens" not in steps[-1]
    assert steps[-1]["points_per_s"] > 0
    for report in (
        run_report("one", whole.summary, lines, "here"),
        comparison_report("all", {"a": (whole.summary, lines)}, "here"),
    ):
        held_out = report.section("Held-out loss")
        assert (held_out.x_label, held_out.y_label) == ("points", "loss (squared error)")
        assert "points" in report.section("Run").facts and "tokens" not in report.section("Run").facts
    assert report.section("Methods").columns[-1] == "points/s"
    named = replace(whole.summary, words=Words(items="grid points", loss="error", metrics=()))
    named.save(tmp_path / "named.json")
    assert Summary.load(tmp_path / "named.json") == named


def test_files_of_older_runs_say_tokens_and_are_read(recipe, tmp_path):
    whole = train(recipe(), out=tmp_path / "whole", callbacks=[]).summary
    content = json.loads((tmp_path / "whole" / "summary.json").read_text())
    content["tokens"], content["tokens_per_s"] = content.pop("items"), content.pop("items_per_s")
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert Summary.load(tmp_path / "old.json") == whole
    del content["words"]  # as runs of before words had it, which were runs of text
    (tmp_path / "older.json").write_text(json.dumps(content))
    assert Summary.load(tmp_path / "older.json").words == Words()
    old = [{"event": "step", "step": 1, "loss": 2.0, "tokens": 5}]
    assert curve(old, "step", "loss", items="samples") == ([5], [2.0])
