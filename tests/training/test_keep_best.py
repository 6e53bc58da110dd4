import pytest
import torch
from listeners import Record

from featherweight.errors import ConfigError
from featherweight.training.metrics import read_metrics
from featherweight.training.run import train
from featherweight.training.summary import Summary

EVIL = {"optimizer": {"name": "adamw", "lr": 0.3}, "evaluate_every": 1, "steps": 10, "schedule": "constant"}
"""A rate so high that evaluations go up and down."""


def weights(run):
    return torch.load(run.folder / "model" / "weights.pt", weights_only=True)


def losses(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return {line["step"]: line["held_out_loss"] for line in lines if line["event"] == "evaluate" and line["step"]}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_model_has_the_weights_of_the_best_evaluation_also_after_a_death(recipe, tmp_path):
    last = train(recipe(**EVIL), out=tmp_path / "last", callbacks=[])
    found = losses(last.folder)
    best = min(found, key=found.get)
    assert best < 10, "this test wants a run that gets worse"
    kept = train(recipe(**EVIL, save_best=True), out=tmp_path / "best", callbacks=[])
    assert kept.summary.best_step == best and kept.summary.best["held_out_loss"] == found[best]
    assert Summary.load(kept.folder / "summary.json") == kept.summary
    until = train(recipe(**{**EVIL, "steps": best}), out=tmp_path / "until", callbacks=[])
    assert same(weights(kept), weights(until)) and not same(weights(kept), weights(last))
    assert [path.name for path in (kept.folder / "best").iterdir()] == [f"step-{best:08d}"]
    assert kept.report.section("Result").rows[-1][0] == f"best, after step {best}"
    # A run that dies anywhere keeps the same one: what a resume makes again is judged again.
    for died_at in (best + 1, 10):
        one = recipe(**EVIL, save_best=True, checkpoint_every=best - 1)
        folder = tmp_path / f"died-{died_at}"
        with pytest.raises(RuntimeError):
            train(one, out=folder, callbacks=[Record(stop_at=died_at)])
        assert same(weights(train(one, out=folder, resume=True, callbacks=[])), weights(kept))


def test_a_run_ends_early_when_it_gets_no_better_and_a_resume_with_more_patience_goes_on(recipe, tmp_path):
    one = recipe(**EVIL, early_stopping={"patience": 2}, checkpoint_at_end=True)
    run = train(one, out=tmp_path / "run", callbacks=[])
    assert run.summary.steps < 10 and "2 evaluations" in run.summary.ended_early
    assert "Ended early" in [section.title for section in run.report.sections]
    assert train(one, out=tmp_path / "run", resume=True, callbacks=[]).summary == run.summary
    patient = train(one.override(["early_stopping.patience=9"]), out=tmp_path / "run", resume=True, callbacks=[])
    assert patient.summary.steps == 10 and not patient.summary.ended_early
    through = train(recipe(**EVIL), out=tmp_path / "through", callbacks=[])
    assert same(weights(patient), weights(through))


@pytest.mark.parametrize("key", ["save_best", "early_stopping"])
def test_without_evaluations_on_the_way_there_is_no_best_one(recipe, key):
    with pytest.raises(ConfigError, match=f"{key} compares evaluations.*Set evaluate_every"):
        recipe(**{key: True if key == "save_best" else {}})


def test_a_metric_that_the_task_lacks_ends_the_run_at_the_first_evaluation(recipe, tmp_path):
    one = recipe(evaluate_every=2, save_best={"metric": "accuracy"})
    with pytest.raises(ConfigError, match="metric=accuracy is none that the task measures; expected one of held_out"):
        train(one, out=tmp_path / "run", callbacks=[])
