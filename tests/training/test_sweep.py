import csv

import pytest
from listeners import Record

from featherweight.errors import CheckpointError, ConfigError
from featherweight.report import Report
from featherweight.training.events import Callback
from featherweight.training.sweep import failures, sweep

pytestmark = pytest.mark.xdist_group("sweeps")  # several look at one

GRID = ["optimizer.lr=0.01,0.02", "seed=0,1"]
TASK = {"name": "regression", "dropout": 0.1}


def rows(report, title):
    table = report.section(title)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished sweep and its folder; the recipe fixture has the scope of a test."""
    from featherweight.training.recipe import Recipe

    recipe = Recipe(task=TASK, optimizer={"name": "adamw", "lr": 0.01}, steps=4, micro_batch_size=4, memory_steps=[])
    folder = tmp_path_factory.mktemp("sweep") / "all"
    return recipe, sweep(recipe, GRID, out=folder, callbacks=[]), folder


def test_one_table_has_mean_and_spread_over_the_seeds_everywhere_the_same(finished):
    _, report, folder = finished
    settings, points = rows(report, "Settings"), rows(report, "Points")
    assert [row["optimizer.lr"] for row in settings] == [0.01, 0.02] and all(r["runs"] == "2 of 2" for r in settings)
    for setting in settings:
        values = [row["held-out loss"] for row in points if row["optimizer.lr"] == setting["optimizer.lr"]]
        assert len(set(values)) == 2
        assert setting["held-out loss"] == pytest.approx(sum(values) / 2, rel=1e-12)
        assert setting["± held-out loss"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-9)
    assert Report.from_json((folder / "report.json").read_text()) == report
    with open(folder / "report.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["held-out loss"]) for row in written] == [row["held-out loss"] for row in settings]
    assert len((folder / "points.csv").read_text().splitlines()) == 5
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert [row["point"] for row in points] == sorted(path.parent.name for path in folder.glob("*/summary.json"))
    assert "Lowest held-out loss" in report.section("Reading").text


def test_finished_points_are_skipped_half_done_ones_go_on_and_the_grid_may_grow(finished, tmp_path):
    recipe, whole, folder = finished
    with pytest.raises(KeyboardInterrupt):
        sweep(
            recipe.override(["checkpoint_every=1"]), GRID, out=tmp_path / "parts", callbacks=[Interrupt(run=2, step=3)]
        )
    record = Record()
    more = ["optimizer.lr=0.01,0.02", "seed=0,1,2"]
    report = sweep(recipe, more, out=tmp_path / "parts", resume=True, callbacks=[record])
    starts = [step for moment, step in record.moments if moment == "start"]
    assert starts == [2, 0, 0, 0, 0]  # the second goes on, the first is not made again
    assert len(rows(report, "Points")) == 6
    known = {row["point"]: row["held-out loss"] for row in rows(whole, "Points")}
    assert known.items() <= {row["point"]: row["held-out loss"] for row in rows(report, "Points")}.items()
    with pytest.raises(CheckpointError, match="differs .*steps: 4 -> 5"):
        sweep(recipe, [*GRID, "steps=5"], out=tmp_path / "parts", resume=True, callbacks=[])


class Interrupt(Callback):
    """Dies as by kill -9 does: nothing is written after it."""

    def __init__(self, run, step):
        self.run, self.step, self.seen = run, step, 0

    def on_start(self, event):
        self.seen += 1

    def on_step(self, event):
        if (self.seen, event.step) == (self.run, self.step):
            raise KeyboardInterrupt


def test_a_point_that_fails_is_a_row_and_not_the_end(recipe, tmp_path):
    class Break(Callback):
        def on_step(self, event):
            if event.recipe.optimizer["lr"] == 0.02:
                raise RuntimeError("a fault of my own task")

    report = sweep(recipe(steps=2), ["optimizer.lr=0.02,0.01"], out=tmp_path / "all", callbacks=[Break()])
    assert [row["runs"] for row in rows(report, "Settings")] == ["0 of 1", "1 of 1"]
    assert failures(report) == {"optimizer.lr=0.02": "RuntimeError: a fault of my own task"}
    report = sweep(recipe(steps=2), ["optimizer.lr=0.02,0.01"], out=tmp_path / "all", resume=True, callbacks=[])
    assert failures(report) == {}
    everything = sweep(recipe(steps=2), ["optimizer.target_modules=absent,missing"], out=tmp_path / "no", callbacks=[])
    assert len(failures(everything)) == 2 and "matches no module" in str(failures(everything))


def test_a_wrong_value_is_found_before_any_training(recipe, tmp_path):
    record = Record()
    for changes, sentence in (
        (["optimizer.lr=0.1,-1"], "lr=-1.* is out of range"),
        (["optimizr.lr=0.1,1"], "Did you mean 'optimizer'"),
        (["steps=3"], "no key has several values; expected at least one axis"),
        (["seed=0,0"], "names 0 twice"),
        (["seed=0,1", "seed=2,3"], "seed is given twice"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            sweep(recipe(), changes, out=tmp_path / "all", callbacks=[record])
    assert record.moments == [] and not (tmp_path / "all").exists()


def test_two_sweeps_cannot_work_in_one_folder(recipe, tmp_path):
    class Second(Callback):
        def on_start(self, event):
            with pytest.raises(ConfigError, match="in use by another process"):
                sweep(recipe(), ["seed=0,1"], out=tmp_path / "all", resume=True, callbacks=[])

    assert failures(sweep(recipe(steps=1), ["seed=0,1"], out=tmp_path / "all", callbacks=[Second()])) == {}
