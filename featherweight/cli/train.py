"""`fw train`: run a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featherweight.cli.screen import AsJson, Overrides, RecipeFile, Resume, leave_cleanly, print_json, print_result
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from featherweight.training.estimate import MemoryEstimate
    from featherweight.training.recipe import Recipe


def train(
    recipe: RecipeFile,
    changes: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The run folder; default: runs/<name>-<time>.", show_default=False),
    ] = None,
    resume: Resume = False,
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            help="Memory that the run may take, such as 16GB: plan the recipe for it first, then train the best one.",
            show_default=False,
        ),
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Simulate the recipe first; show predicted beside measured memory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model as a recipe says.

    With --plan the optimizer, the methods, the precision and the micro-batch are chosen so that the run fits; the rest
    of the recipe stays. The run stops after its second step if it needs more than 10 % beyond the plan.

    The run folder holds report.html, metrics.jsonl, recipe.yaml, summary.json, checkpoints and the trained model.
    Ctrl-C finishes the current step, writes a checkpoint and shows the command that goes on from there.

    [bold]Examples[/bold]

    fw train recipe.yaml

    fw train recipe.yaml optimizer=galore_8bit optimizer.rank=64 steps=500 --out runs/rank64

    fw train recipe.yaml --out runs/rank64 --resume

    fw train recipe.yaml --plan 16GB
    """
    from featherweight.errors import OutOfMemoryError
    from featherweight.training.recipe import Recipe, load_recipe
    from featherweight.training.run import new_run_folder, run_name
    from featherweight.training.run import train as run_training

    words = [str(recipe), *(changes or [])]
    chosen, estimate = load_recipe(recipe, changes or []), None
    if plan is not None or predict:
        _refuse_resume(resume)
        name = run_name(recipe, chosen)
        chosen = Recipe.parse({**chosen.to_dict(), "name": name})
        out = out or new_run_folder(name)
        with leave_cleanly("train", words):
            chosen, estimate = _simulated(chosen, plan, as_json)
        words = [str(out / "recipe.yaml")]  # what was planned is what a resumed run goes on with
    with leave_cleanly("train", words, lambda interruption: interruption.checkpoint.parents[1]):
        source, overrides = (recipe, changes or []) if estimate is None else (chosen, [])
        try:
            run = run_training(
                source,
                overrides=overrides,
                out=out,
                resume=resume,
                callbacks=[] if as_json else None,
                estimate=estimate,
            )
        except OutOfMemoryError as error:
            from featherweight.planner.train import explained

            raise explained(error, chosen) from error
        if as_json:
            print_json({"folder": str(run.folder), **run.summary.to_dict()})
        else:
            print_result(run.report, run.folder)


def _refuse_resume(resume: bool) -> None:
    if resume:
        raise ConfigError(
            "fw train: --resume goes on with the recipe of the run; expected it without --plan and --predict. Leave "
            "them out."
        )


def _simulated(recipe: "Recipe", budget: str | None, as_json: bool) -> "tuple[Recipe, MemoryEstimate]":
    """Return the recipe to train and its estimate: planned for a budget, or as it stands."""
    from featherweight.cli.plan import print_plan
    from featherweight.planner.train import planned, predicted

    if budget is None:
        return recipe, predicted(recipe)
    found, best = planned(recipe, budget)
    if not as_json:
        print_plan(found)
    return best, found.best.estimate
