"""`fw compare`: run a recipe with several optimizers and show them side by side."""

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.optimizer_names import FormerSpelling, Optimizers, given_names
from featherweight.cli.recipe_check import check_recipe
from featherweight.cli.screen import (
    AsJson,
    Imports,
    Overrides,
    RecipeFile,
    Resume,
    import_words,
    leave_cleanly,
    print_error,
    print_json,
    print_result,
)


def compare(
    recipe: RecipeFile,
    changes: Overrides = None,
    optimizers: Optimizers = "adamw,galore,galore_8bit",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The folder; default: runs/<name>-compare-<time>.", show_default=False),
    ] = None,
    resume: Resume = False,
    imports: Imports = None,
    as_json: AsJson = False,
    methods: FormerSpelling = None,
) -> None:
    """Train one recipe with several optimizers in turn: same start, same data, same seed.

    Prints one table: loss, perplexity (or the task's error), predicted and measured memory, speed; report.html adds the
    curves.
    The recipe's key 'compare' gives each method its own options; finished methods survive an interruption, and the
    failure of another one (which makes the exit code 1).

    [bold]Examples[/bold]

    fw compare recipe.yaml

    fw compare recipe.yaml --optimizers adamw,galore_8bit compare.galore_8bit.rank=64

    fw compare recipe.yaml --out runs/first --resume
    """
    checked = check_recipe(recipe, changes)
    names = [name.strip() for name in given_names(optimizers, methods).split(",") if name.strip()]
    from featherweight.training.recipe import method_recipe

    for name in names:
        method_recipe(checked, name).check_options()
    if resume and out is not None:
        from featherweight.training.run_folder import require_begun

        require_begun(out, "compare", "comparison")
    from featherweight.report import Note
    from featherweight.training.compare import compare as run_comparison
    from featherweight.training.compare import failure_title
    from featherweight.training.run import run_name
    from featherweight.training.run_folder import new_run_folder
    from featherweight.training.summary import Summary

    folder = out or new_run_folder(f"{run_name(recipe, checked)}-compare")
    words = [str(recipe), *(changes or []), "--optimizers", ",".join(names), *import_words(imports)]
    with leave_cleanly("compare", words, lambda _: folder):
        report = run_comparison(
            recipe, names, overrides=changes or [], out=folder, resume=resume, callbacks=[] if as_json else None
        )
        notes = {section.title: section.text for section in report.sections if isinstance(section, Note)}
        failed = {name: notes[failure_title(name)] for name in names if failure_title(name) in notes}
        if as_json:
            outcomes = {
                name: Summary.load(folder / name / "summary.json").to_dict() for name in names if name not in failed
            }
            print_json({"folder": str(folder), "methods": outcomes, "failed": failed})
        else:
            print_result(report, folder)
        for name, reason in failed.items():
            print_error(f"{name}: {reason}")
        if failed:
            raise typer.Exit(1)
