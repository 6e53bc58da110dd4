import inspect
import json
from dataclasses import replace

import pytest
import torch

from featherweight import training
from featherweight.training.metrics import read_metrics
from featherweight.training.run import train
from featherweight.training.summary import Summary, comparison_report, run_report
from featherweight.training.task import Task, Words, tasks

SMALL = {
    "regression": {},
    "pde": {"data": "darcy", "resolution": 12, "n_train": 12, "n_test": 4, "n_modes": [4, 4], "hidden_channels": 4},
    "text": {"model": "tiny", "seq_len": 32, "max_train_tokens": 1000, "max_held_out_tokens": 200},
    "instructions": {"model": "tiny", "data": "questions.json", "held_out": 0.3},
}
"""Options that make each task small enough for these tests."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with a file of questions."""
    rows = [{"question": f"{number} + 1 = ?", "answer": f"It is {number + 1}."} for number in range(12)]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)


def build(name: str, seed: int = 3) -> Task:
    task_class = tasks.get(name)
    return task_class(task_class.Config.parse(SMALL[name]), seed=seed)


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_has_the_methods_of_the_contract_with_their_arguments(name):
    for member, function in inspect.getmembers(Task, inspect.isfunction):
        if member.startswith("__") and member != "__init__":
            continue
        own = getattr(tasks.get(name), member)
        assert list(inspect.signature(own).parameters) == list(inspect.signature(function).parameters), member


@pytest.mark.parametrize("name", tasks.names())
def test_skipping_micro_batches_equals_drawing_them(name):
    task = build(name)
    through = task.batches("train", micro_batch_size=4, seed=1)
    for _ in range(9):  # further than one epoch of each task
        next(through)
    skipped = next(task.batches("train", micro_batch_size=4, seed=1, start=9))
    drawn = next(through)
    assert drawn.keys() == skipped.keys()
    assert all(torch.equal(drawn[key], skipped[key]) for key in drawn)


@pytest.mark.parametrize("name", tasks.names())
def test_the_loss_is_a_float_sum_over_the_counted_items(name):
    task = build(name)
    torch.manual_seed(0)
    model = task.build_model()
    batch = next(task.batches("train", micro_batch_size=4, seed=0))
    loss, count = task.loss(model, batch)
    assert count == task.item_count(batch) >= 4
    assert loss.dtype == torch.float32 and loss.shape == () and loss.requires_grad
    halves = [
        task.loss(model, {key: tensor[part] for key, tensor in batch.items()})[0].item()
        for part in (slice(2), slice(2, 4))
    ]
    # A float32 sum in two parts instead of one.
    assert sum(halves) == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", tasks.names())
def test_an_evaluation_measures_the_held_out_loss_and_leaves_the_mode(name):
    task = build(name)
    model = task.build_model().train()
    metrics = task.evaluate(model, micro_batch_size=2)
    assert metrics["held_out_loss"] > 0 and model.training
    assert task.evaluate(model.eval(), micro_batch_size=2) == metrics and not model.training


def test_the_public_names_of_the_package_load_on_first_use():
    for name in training.__all__:
        assert getattr(training, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Recpie'"):
        training.Recpie  # noqa: B018


def test_a_task_without_words_counts_tokens_and_reports_call_the_items_of_others_by_name(recipe, tmp_path):
    whole = train(recipe(), out=tmp_path / "whole", callbacks=[])
    assert whole.summary.words == Words() and whole.report.section("Held-out loss").x_label == "tokens"
    loaded = json.loads((tmp_path / "whole" / "summary.json").read_text())
    del loaded["words"]  # as runs of before have it
    (tmp_path / "old.json").write_text(json.dumps(loaded))
    assert Summary.load(tmp_path / "old.json").words == Words()

    words = Words(items="points", loss="squared error", metrics=())
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    summary = replace(whole.summary, words=words)
    summary.save(tmp_path / "named.json")
    assert Summary.load(tmp_path / "named.json").words == words
    for report in (
        run_report("one", summary, lines, "here"),
        comparison_report("all", {"a": (summary, lines)}, "here"),
    ):
        assert report.section("Held-out loss").y_label == "loss (squared error)"
        assert "points" in report.section("Run").facts and "tokens" not in report.section("Run").facts
    assert report.section("Methods").columns[-1] == "points/s"
