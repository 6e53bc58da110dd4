import json
from pathlib import Path

import pytest
import torch
from listeners import Record

from featherweight.errors import CheckpointError, ConfigError, NumericsError
from featherweight.report import Report
from featherweight.training.events import Callback
from featherweight.training.metrics import read_metrics
from featherweight.training.recipe import Recipe
from featherweight.training.run import train
from featherweight.training.summary import Summary

WITHOUT_CLOCK = ("seconds", "points_per_s")


def numbers(folder: Path) -> list[dict]:
    """Return the metrics without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name not in WITHOUT_CLOCK}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_run_folder_holds_all_that_is_needed_to_judge_and_repeat_it(recipe, tmp_path):
    one = recipe(evaluate_every=4, checkpoint_every=4, memory_steps=[2])
    run = train(one, out=tmp_path / "run", callbacks=[])
    names = {path.name for path in run.folder.iterdir()}
    files = {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "report.json",
        "report.csv",
    }
    assert names == files | {"checkpoints", "model"}
    assert Recipe.from_file(run.folder / "recipe.yaml") == one
    assert json.loads((run.folder / "environment.json").read_text())["packages"]["torch"] == str(torch.__version__)
    assert Report.from_json((run.folder / "report.json").read_text()) == run.report
    assert Summary.load(run.folder / "summary.json").footprint == run.summary.footprint
    lines = read_metrics(run.folder / "metrics.jsonl")
    assert [(line["event"], line["step"]) for line in lines if line["event"] == "evaluate"] == [
        ("evaluate", 0),
        ("evaluate", 4),
        ("evaluate", 8),
    ]
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert all(isinstance(value, int | float) for line in steps for name, value in line.items() if name != "event")
    assert run.summary.training_loss == steps[-1]["loss"]
    assert run.summary.held_out["held_out_loss"] == lines[-1]["held_out_loss"]
    assert run.summary.before_training["held_out_loss"] == lines[0]["held_out_loss"]
    assert run.summary.items == steps[-1]["points"]
    assert run.summary.held_out["held_out_loss"] < run.summary.before_training["held_out_loss"]


def test_the_report_shows_predicted_beside_measured_memory(recipe, tmp_path):
    run = train(recipe(task={"name": "regression", "hidden": 80}, memory_steps=[2]), out=tmp_path / "run", callbacks=[])
    table = run.report.section("Memory")
    assert table.columns[:3] == ["category", "predicted (KiB)", "measured maximum (KiB)"]
    cells = {row[0]: row[1:] for row in table.rows}
    for category in ("weights", "gradients", "optimizer state"):
        assert cells[category][0] == cells[category][1] > 0
    assert cells["activations"][0] is None and cells["activations"][1] > 0
    # Each of at most eight cells is rounded to two decimals.
    assert sum(row[2] or 0 for name, row in cells.items() if name != "peak") == pytest.approx(
        cells["peak"][2], abs=0.05
    )


def test_a_recipe_file_gives_its_name_to_the_run_folder(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe(steps=1).to_file(tmp_path / "small.yaml")
    runs = [train("small.yaml", overrides=["seed=3"], callbacks=[]) for _ in range(2)]
    assert all(run.folder.parent.name == "runs" and run.folder.name.startswith("small-2") for run in runs)
    assert runs[0].folder != runs[1].folder
    assert Recipe.from_file(runs[0].folder / "recipe.yaml").seed == 3


def test_a_resumed_run_leaves_the_metrics_and_weights_of_an_uninterrupted_one(recipe, tmp_path):
    one = recipe(task={"name": "regression", "dropout": 0.2}, evaluate_every=2, checkpoint_every=3)
    through = train(one, out=tmp_path / "through", callbacks=[])
    record = Record(stop_at=5)
    with pytest.raises(RuntimeError, match="the power is gone"):
        train(one, out=tmp_path / "run", callbacks=[record])
    assert record.moments[-1] == ("end", 5)
    again = Record()
    resumed = train(one, out=tmp_path / "run", resume=True, callbacks=[again])
    assert again.moments[0] == ("start", 3)
    assert numbers(resumed.folder) == numbers(through.folder)
    weights = [torch.load(run.folder / "model" / "weights.pt", weights_only=True) for run in (through, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_that_died_before_its_first_checkpoint_resumes_from_the_start(recipe, tmp_path):
    with pytest.raises(RuntimeError):
        train(recipe(), out=tmp_path / "run", callbacks=[Record(stop_at=2)])
    run = train(recipe(), out=tmp_path / "run", resume=True, callbacks=[])
    assert [line["step"] for line in read_metrics(run.folder / "metrics.jsonl")] == [0, *range(1, 9), 8]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(recipe, tmp_path):
    one = recipe(checkpoint_every=2)
    through = train(one, out=tmp_path / "run", callbacks=[])
    newest = tmp_path / "run" / "checkpoints" / "step-00000008" / "model.safetensors"
    newest.write_bytes(b"")
    (tmp_path / "run" / "summary.json").unlink()  # as if the run had been killed before its end
    record = Record()
    with pytest.warns(UserWarning, match="step-00000008 is damaged"):
        resumed = train(one, out=tmp_path / "run", resume=True, callbacks=[record])
    assert record.moments[0] == ("start", 6)
    assert resumed.summary.held_out == through.summary.held_out
    assert newest.stat().st_size > 0


def test_a_folder_that_holds_a_run_is_not_overwritten(recipe, tmp_path):
    train(recipe(steps=1), out=tmp_path / "run", callbacks=[])
    with pytest.raises(ConfigError, match="already holds a run; expected a new or empty folder"):
        train(recipe(steps=1), out=tmp_path / "run", callbacks=[])


def test_resume_needs_the_folder_of_a_run(recipe, tmp_path):
    with pytest.raises(CheckpointError, match="absent holds no run"):
        train(recipe(), out=tmp_path / "absent", resume=True, callbacks=[])
    with pytest.raises(CheckpointError, match="leaves open what to resume"):
        train(recipe(), resume=True, callbacks=[])


def test_a_finished_run_is_not_made_again_by_a_resume(recipe, tmp_path):
    first = train(recipe(), out=tmp_path / "run", callbacks=[])
    files = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    record = Record()
    again = train(recipe(), out=tmp_path / "run", resume=True, callbacks=[record])
    assert record.moments == [] and again == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == files
    (first.folder / "report.json").unlink()
    with pytest.raises(CheckpointError, match="report.json cannot be read .*Delete summary.json"):
        train(recipe(), out=tmp_path / "run", resume=True, callbacks=[])


def test_another_recipe_is_refused_also_before_the_first_checkpoint(recipe, tmp_path):
    with pytest.raises(RuntimeError):
        train(recipe(), out=tmp_path / "run", callbacks=[Record(stop_at=2)])
    with pytest.raises(CheckpointError, match="differs \\(seed: 0 -> 1\\); expected the recipe that began the run"):
        train(recipe(seed=1), out=tmp_path / "run", resume=True, callbacks=[])


def test_a_run_that_fails_before_it_begins_leaves_nothing_behind(recipe, tmp_path):
    wrong = recipe(optimizer={"name": "galore", "target_modules": ["absent"]})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    for name in ("new", "mine"):
        with pytest.raises(ConfigError, match="matches no module"):
            train(wrong, out=tmp_path / name, callbacks=[])
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["mine", "mine/notes.txt"]


def test_two_runs_cannot_work_in_one_folder(recipe, tmp_path):
    class SecondRun(Callback):
        def on_start(self, event):
            with pytest.raises(ConfigError, match="run is in use by another process; expected a folder of its own"):
                train(recipe(), out=tmp_path / "run", callbacks=[])

    assert train(recipe(), out=tmp_path / "run", callbacks=[SecondRun()]).summary.steps == 8


def test_a_model_that_cannot_be_saved_is_kept_in_a_checkpoint(recipe, tmp_path):
    class Block(Callback):
        def on_end(self, event):
            (tmp_path / "run" / "model").write_text("in the way")

    with pytest.raises(FileExistsError):
        train(recipe(), out=tmp_path / "run", callbacks=[Block()])
    (tmp_path / "run" / "model").unlink()
    record = Record()
    run = train(recipe(), out=tmp_path / "run", resume=True, callbacks=[record])
    assert record.moments == [("start", 8), ("evaluate", 8), ("end", 8)]
    assert (run.folder / "model" / "weights.pt").is_file()


def test_resume_with_another_recipe_changes_nothing_in_the_folder(recipe, tmp_path):
    one = recipe(steps=2, checkpoint_every=2)
    train(one, out=tmp_path / "run", callbacks=[])
    with pytest.raises(CheckpointError, match="differs \\(seed: 0 -> 1\\)"):
        train(one, overrides=["seed=1"], out=tmp_path / "run", resume=True, callbacks=[])
    assert Recipe.from_file(tmp_path / "run" / "recipe.yaml") == one


def test_a_folder_that_cannot_be_written_is_one_clear_sentence(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        train(recipe(), out=tmp_path / "file" / "run", callbacks=[])
    assert "\n" not in str(caught.value)


def test_a_broken_loss_keeps_the_last_checkpoint(recipe, tmp_path):
    broken = recipe(task={"name": "regression", "broken_at": 5}, checkpoint_every=2)
    with pytest.raises(NumericsError, match="step 6.*The last checkpoint is .*step-00000004"):
        train(broken, out=tmp_path / "run", callbacks=[])
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()


def test_updates_skipped_for_a_gradient_that_is_not_finite_are_reported(recipe, tmp_path):
    class Spoil(Callback):
        def on_start(self, event):
            event.model[0].weight.register_hook(lambda grad: grad * float("inf"))

    run = train(recipe(steps=3), out=tmp_path / "run", callbacks=[Spoil()])
    assert run.summary.skipped_steps == 3
    assert "left out 3 updates" in run.report.section("Gradients that were not finite").text
    assert read_metrics(run.folder / "metrics.jsonl")[1]["grad_norm"] is None
