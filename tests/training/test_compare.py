import os
import signal
from functools import partial
from pathlib import Path

import pytest

from featherweight.errors import CheckpointError, ConfigError, NumericsError
from featherweight.report import Report
from featherweight.training.compare import compare, method_recipe
from featherweight.training.events import Callback
from featherweight.training.interrupt import TrainingInterrupted
from featherweight.training.metrics import read_metrics
from featherweight.training.recipe import load_recipe

pytestmark = pytest.mark.xdist_group("comparisons")  # several look at one

METHODS = ["adamw", "galore", "small"]


def of_several(recipe, **changes):
    options = {"adamw": {"lr": 0.02}, "small": {"name": "galore_8bit", "rank": 2, "lr": 0.03}}
    return recipe(task={"name": "regression", "hidden": 80}, memory_steps=[2], compare=options, **changes)


@pytest.fixture
def several(recipe):
    return partial(of_several, recipe)


class Record(Callback):
    def __init__(self, interrupt=None):
        self.runs, self.interrupt = [], interrupt

    def on_start(self, event):
        self.runs.append(dict(event.recipe.optimizer))

    def on_step(self, event):
        if (len(self.runs), event.step) == self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def compared(recipe, tmp_path_factory):
    """Every method, compared once: the folder, the report, and what the runs were."""
    folder, record = tmp_path_factory.mktemp("compare") / "all", Record()
    return folder, compare(of_several(recipe), METHODS, out=folder, callbacks=[record]), record.runs


def test_one_table_shows_every_method_beside_the_untrained_model(compared):
    folder, report, _ = compared
    table = report.section("Methods")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["before training", *METHODS]
    for method in METHODS:
        row = rows[method]
        assert row["held-out loss"] < rows["before training"]["held-out loss"]
        for category in ("weights", "gradients", "optimizer state"):
            predicted, measured = row[f"{category} (KiB)"].split(" / ")
            assert predicted == measured and float(measured.replace(",", "")) > 0
        assert row["peak (KiB)"] > float(row["activations (KiB)"]) and row["points/s"] > 0
    states = [float(rows[method]["optimizer state (KiB)"].split(" / ")[1]) for method in METHODS]
    assert states[0] > states[1] > states[2]
    assert list(report.section("Memory at the peak of a step").bars) == METHODS
    curves = report.section("Held-out loss").curves
    # All curves start at the untrained model, which was evaluated once.
    assert len({curves[method][1][0] for method in METHODS}) == 1 and all(
        curves[method][0][0] == 0 for method in METHODS
    )
    assert [line["step"] for line in read_metrics(folder / "galore" / "metrics.jsonl")][0] == 1
    assert Report.from_json((folder / "report.json").read_text()) == report
    assert "<svg" in (folder / "report.html").read_text()


def test_each_method_has_its_own_options_and_the_same_start(compared):
    folder, _, runs = compared
    assert runs == [
        {"name": "adamw", "lr": 0.02},
        {"name": "galore", "rank": 4, "lr": 0.01, "update_proj_gap": 5},
        {"name": "galore_8bit", "rank": 2, "lr": 0.03},
    ]
    first = {method: read_metrics(folder / method / "metrics.jsonl") for method in METHODS}
    losses = {next(line["loss"] for line in lines if line["event"] == "step") for lines in first.values()}
    assert len(losses) == 1


def test_an_override_reaches_one_method(several, tmp_path):
    record = Record()
    compare(several(), ["small"], overrides=["compare.small.rank=3"], out=tmp_path / "all", callbacks=[record])
    assert record.runs[0]["rank"] == 3


def test_an_interruption_keeps_what_is_done_and_a_resume_makes_the_rest(several, compared, tmp_path):
    _, whole, _ = compared
    with pytest.raises(TrainingInterrupted):
        compare(several(), METHODS, out=tmp_path / "parts", callbacks=[Record(interrupt=(2, 3))])
    partial = Report.from_json((tmp_path / "parts" / "report.json").read_text())
    assert [row[0] for row in partial.section("Methods").rows] == ["before training", "adamw"]
    record = Record()
    resumed = compare(several(), METHODS, out=tmp_path / "parts", resume=True, callbacks=[record])
    assert [run["name"] for run in record.runs] == ["galore", "galore_8bit"]
    columns = whole.section("Methods").columns
    until_speed = columns.index("points/s")
    assert [row[:until_speed] for row in resumed.section("Methods").rows] == [
        row[:until_speed] for row in whole.section("Methods").rows
    ]


def test_a_finished_method_of_another_recipe_is_not_taken_over(several, tmp_path):
    compare(several(steps=2), ["adamw"], out=tmp_path / "all", callbacks=[])
    with pytest.raises(CheckpointError, match="differs \\(steps: 2 -> 3\\)"):
        compare(several(steps=3), ["adamw"], out=tmp_path / "all", resume=True, callbacks=[])


def test_a_wrong_method_is_found_before_any_training(several, tmp_path):
    with pytest.raises(ConfigError, match="name='galor' is unknown.*Did you mean 'galore'"):
        compare(several(), ["adamw", "galor"], out=tmp_path / "all", callbacks=[])
    with pytest.raises(ConfigError, match="methods=\\[\\] is empty"):
        compare(several(), [], out=tmp_path / "all", callbacks=[])
    assert not (tmp_path / "all").exists()


def test_a_method_that_diverges_is_a_note_and_the_others_keep_their_results(several, tmp_path):
    class Break(Callback):
        def on_step(self, event):
            if event.optimizer.defaults["lr"] == 0.02:
                next(event.model.parameters()).data.fill_(float("nan"))

    report = compare(several(), ["adamw", "small"], out=tmp_path / "all", callbacks=[Break()])
    rows = [row[0] for row in report.section("Methods").rows]
    assert rows == ["before training", "small"]
    assert "loss=nan is not finite in step 2" in report.section("adamw did not finish").text
    assert Report.from_json((tmp_path / "all" / "report.json").read_text()) == report
    with pytest.raises(NumericsError, match="loss=nan"):
        compare(several(), ["adamw"], out=tmp_path / "none", callbacks=[Break()])


def test_a_mistake_that_shows_late_in_one_method_keeps_the_others_and_an_early_one_stops_at_once(several, tmp_path):
    wrong = ["compare.galore.target_modules=absent"]
    report = compare(several(), ["adamw", "galore"], overrides=wrong, out=tmp_path / "late", callbacks=[])
    assert "matches no module" in report.section("galore did not finish").text
    record = Record()
    with pytest.raises(ConfigError, match="matches no module"):
        compare(several(), ["galore", "adamw"], overrides=wrong, out=tmp_path / "early", callbacks=[record])
    assert record.runs == []


def test_a_method_that_has_a_run_already_is_found_before_any_training(several, tmp_path):
    compare(several(), ["galore"], out=tmp_path / "all", callbacks=[])
    record = Record()
    with pytest.raises(ConfigError, match="galore already holds a run"):
        compare(several(), ["adamw", "galore"], out=tmp_path / "all", callbacks=[record])
    assert record.runs == []


def test_methods_of_one_family_share_the_options_of_the_recipe_and_others_say_that_they_have_defaults(recipe, tmp_path):
    record = Record()
    base = recipe(optimizer={"name": "galore_8bit", "rank": 3, "lr": 0.02}, steps=2)
    report = compare(base, ["galore_8bit", "galore", "adamw"], out=tmp_path / "all", callbacks=[record])
    assert [{k: run[k] for k in run if k in ("name", "rank", "lr")} for run in record.runs] == [
        {"name": "galore_8bit", "rank": 3, "lr": 0.02},
        {"name": "galore", "rank": 3, "lr": 0.02},
        {"name": "adamw"},
    ]
    assert report.section("Default options").text.startswith("adamw: default options")


@pytest.mark.parametrize("name", ["demo", "demo_tiny"])
def test_every_row_of_the_demo_is_a_recipe_of_its_own(name):
    # Mutation: methods of a row that are left among the options of its optimizer, or reach the other rows.
    base = load_recipe(Path(__file__).parents[2] / "examples" / "recipes" / f"{name}.yaml")
    rows = {row: method_recipe(base, row) for row in base.compare}
    for row, one in rows.items():
        assert one.optimizer_config().name == one.optimizer["name"]
        assert [type(method).__name__ for method in one.build_methods()] == ["CoreGradient"] * (row == "galore_core")
    assert rows["galore_core"].optimizer_config().layerwise and rows["galore_core"].optimizer_config().state_bits == 16
