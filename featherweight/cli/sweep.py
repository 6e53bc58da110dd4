"""`fw sweep`: run a recipe at every point of a grid, and compare the settings by their mean over the seeds."""

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.recipe_check import check_names
from featherweight.cli.screen import (
    AsJson,
    Imports,
    RecipeFile,
    Resume,
    import_words,
    leave_cleanly,
    print_error,
    print_json,
    print_result,
)


def sweep(
    recipe: RecipeFile,
    changes: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE,...",
            help="Values of the grid, such as optimizer.lr=1e-4,2e-4 seed=0,1,2; one value holds for all points.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The folder; default: runs/<name>-sweep-<time>.", show_default=False),
    ] = None,
    resume: Resume = False,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe at every point of a grid; runs that differ in the seed alone are repetitions of one setting.

    Prints one table with the mean and the spread over the seeds; the folder holds it as report.html, report.json and
    report.csv, beside points.csv, curves.png and a run folder for each point. A point that fails is a row, and the
    others go on (the exit code is then 1). With --resume, finished points stay and half-done ones go on.

    [bold]Examples[/bold]

    fw sweep recipe.yaml optimizer.lr=1e-4,2e-4 seed=0,1,2

    fw sweep recipe.yaml optimizer=adamw,galore_8bit steps=200 --out runs/first

    fw sweep recipe.yaml optimizer.lr=1e-4,2e-4 seed=0,1,2,3 --out runs/first --resume
    """
    from featherweight.training.grid import grid_points, split_axes
    from featherweight.training.recipe import load_recipe

    fixed, axes = split_axes(changes)
    base = load_recipe(recipe, fixed)
    for point in grid_points(base, axes):
        check_names(point.recipe)
    if resume and out is not None:
        from featherweight.training.run_folder import require_begun

        require_begun(out, "sweep", "sweep")
    from featherweight.training.run import run_name
    from featherweight.training.run_folder import new_run_folder
    from featherweight.training.sweep import failures
    from featherweight.training.sweep import sweep as run_sweep
    from featherweight.training.sweep_report import POINTS, SETTINGS

    folder = out or new_run_folder(f"{run_name(recipe, base)}-sweep")
    words = [str(recipe), *changes, *import_words(imports)]
    with leave_cleanly("sweep", words, lambda _: folder):
        report = run_sweep(recipe, changes, out=folder, resume=resume, callbacks=[] if as_json else None)
        failed = failures(report)
        if as_json:
            tables = {title: _rows(report.section(title)) for title in (SETTINGS, POINTS)}
            print_json({"folder": str(folder), "settings": tables[SETTINGS], "points": tables[POINTS]})
        else:
            print_result(report, folder)
        for name, reason in failed.items():
            print_error(f"{name}: {reason}")
        if failed:
            raise typer.Exit(1)


def _rows(table: object) -> list[dict[str, object]]:
    columns = getattr(table, "columns", [])
    return [dict(zip(columns, row, strict=True)) for row in getattr(table, "rows", [])]
