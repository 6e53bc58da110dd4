"""`sweep`: one recipe over a grid of values and seeds, and one table with the mean and the spread over the seeds."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from featherweight.distributed.group import refuse_several
from featherweight.errors import CheckpointError, ConfigError
from featherweight.report import Report
from featherweight.training.environment import describe_environment, machine_name
from featherweight.training.events import Callback
from featherweight.training.grid import Point, grid_points, split_axes
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe
from featherweight.training.resume import changed_length, resume_conflicts
from featherweight.training.row import Outcome, run_row
from featherweight.training.run import run_name, save_report
from featherweight.training.run_folder import check_free, locked, new_run_folder, require_begun
from featherweight.training.sweep_report import HELD_OUT, POINTS, sweep_report


def sweep(
    recipe: RecipeSource,
    changes: Iterable[str],
    *,
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] | None = None,
) -> Report:
    """Train a recipe at every point of a grid, and compare the settings by the mean over their seeds.

    Each point gets its own run folder inside `out`; the report is written anew after each of them. A point that fails
    is a row of the table, and the others go on.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        changes: "key=value" for all points, "key=value,value,..." for an axis of the grid; runs that differ in `seed`
            alone are repetitions of one setting.
        out: the folder of the sweep; None makes runs/<name>-sweep-<time>.
        resume: continue the sweep in `out`: finished points stay, half-done ones go on from their checkpoint, those
            that failed are tried again. The grid may have grown.
        callbacks: listeners of each run; None shows the progress on standard output, an empty list is silent.

    Returns:
        The report: settings with mean and spread, curves, all points. Also in `out` as report.html, report.json,
        report.csv (settings), points.csv and curves.png.

    Raises:
        ConfigError: if the recipe or a value is wrong, before any training; or `out` is not usable.
        CheckpointError: if what is to be resumed belongs to another recipe.
        TrainingInterrupted: after a requested stop.
    """
    fixed, axes = split_axes(changes)
    refuse_several("sweep")
    base = load_recipe(recipe, fixed)
    points = grid_points(base.override(["checkpoint_at_end=false"]), axes)
    name = run_name(recipe, base)
    folder = Path(out) if out is not None else new_run_folder(f"{name}-sweep")
    if resume:
        require_begun(folder, "sweep", "sweep")
    with locked(folder):
        for point in points:  # now, and not after the points before it have trained for hours
            if resume:
                _check_same(folder / point.name, point.recipe)
            else:
                check_free(folder / point.name)
        outcomes: dict[str, Outcome | Exception] = {}
        report = Report(name)
        for point in points:
            # Whatever goes wrong at one point, a fault of a user's own task included, is a result of that point.
            outcomes[point.name] = run_row(
                point.name, point.recipe, folder / point.name, resume, callbacks, (Exception,)
            )
            report = _save(name, points, outcomes, folder)
        done = {point: folder / point for point, outcome in outcomes.items() if not isinstance(outcome, Exception)}
        base.task_class.illustrate_together(done, folder)
    return report


def failures(report: Report) -> dict[str, str]:
    """Return why points of a sweep failed, by name."""
    table = report.section(POINTS)
    columns = getattr(table, "columns", [])
    rows = [dict(zip(columns, row, strict=True)) for row in getattr(table, "rows", [])]
    return {row["point"]: row["reason"] for row in rows if row.get("state") == "failed"}


def _save(name: str, points: Sequence[Point], outcomes: Mapping[str, Outcome | Exception], folder: Path) -> Report:
    report = sweep_report(f"{name}: sweep", points, outcomes, machine_name(describe_environment()))
    save_report(report, folder)
    report.save_csv(folder / "points.csv", POINTS)
    if any(section.title == HELD_OUT for section in report.sections):
        report.save_picture(folder / "curves.png", HELD_OUT)
    return report


def _check_same(folder: Path, recipe: Recipe) -> None:
    """Refuse to take over a point of another recipe."""
    if not (folder / "recipe.yaml").is_file():
        return
    try:
        began = Recipe.from_file(folder / "recipe.yaml").to_dict()
    except ConfigError as error:
        raise CheckpointError(f"sweep: the recipe of {folder} cannot be read. {error}") from error
    found = resume_conflicts(began, recipe.to_dict())
    if length := changed_length(began, recipe.to_dict()):
        found.append(length)
    if found:
        raise CheckpointError(
            f"sweep: recipe of {folder} differs ({'; '.join(found)}); expected the recipe that began it. Resume with "
            "that recipe and those values, or start a new sweep in another folder."
        )
