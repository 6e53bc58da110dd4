"""`fw train`: run a recipe."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli.given import require_size
from featherweight.cli.recipe_check import check_recipe
from featherweight.cli.screen import AsJson, Overrides, RecipeFile, Resume, leave_cleanly, print_json, print_result

if TYPE_CHECKING:
    from featherweight.planner import Plan
    from featherweight.training.run import Run


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
            callback=require_size,
        ),
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Simulate the recipe first; show predicted beside measured memory.")
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option(
            "--nproc", help="Start so many processes on this machine by torchrun, one for each GPU.", show_default=False
        ),
    ] = None,
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

    fw train recipe.yaml sharding=ddp --nproc 2
    """
    check_recipe(recipe, changes)
    if not resume:
        from featherweight.config import read_mapping
        from featherweight.text.first_look import look_first

        look_first(read_mapping(recipe), changes)  # what cannot be trained on is said before anything heavy is imported
    if nproc is not None:
        from featherweight.cli.processes import become_processes, words_of

        options = {"--out": out, "--plan": plan, "--resume": resume, "--predict": predict, "--json": as_json}
        become_processes(nproc, ["train", str(recipe), *(changes or []), *words_of(options)])
    from featherweight.distributed import is_first, start, stop
    from featherweight.planner.train import train_with_advice

    start()
    callbacks: list[Any] | None = [] if as_json else None
    # A planned run goes on with what was planned, which stands in its folder.
    again = [str(recipe), *(changes or [])] if plan is None else None
    with leave_cleanly("train", again, lambda interruption: interruption.checkpoint.parents[1]):
        if plan is None:
            run = train_with_advice(
                recipe, overrides=changes or [], predict=predict, out=out, resume=resume, callbacks=callbacks
            )
        else:
            settings = {"overrides": changes or [], "out": out, "resume": resume, "callbacks": callbacks}
            run = _train_planned(recipe, plan, settings, shows=is_first() and not as_json)
        if is_first() and as_json:
            print_json({"folder": str(run.folder), **run.summary.to_dict()})
        elif is_first():
            print_result(run.report, run.folder)
        stop()


def _train_planned(recipe: Path, plan: str, settings: dict[str, Any], *, shows: bool) -> "Run":
    """Plan a recipe, show the plan, and train it."""
    from featherweight.cli.plan import print_plan, simulation_status
    from featherweight.planner.train import train_planned

    with ExitStack() as planning:
        tell = planning.enter_context(simulation_status())

        def show(found: "Plan") -> None:
            planning.close()  # the bar of the training comes now
            if shows:
                print_plan(found)

        return train_planned(recipe, plan, on_plan=show, on_progress=tell, **settings)
