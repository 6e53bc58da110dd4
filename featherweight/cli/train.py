"""`fw train`: run a recipe."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featherweight.cli.given import require_size
from featherweight.cli.recipe_check import check_recipe
from featherweight.cli.screen import (
    AsJson,
    Imports,
    Overrides,
    RecipeFile,
    Resume,
    import_words,
    leave_cleanly,
    print_json,
    print_notice,
    print_result,
)

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
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Train a model as a recipe says.

    With --plan the optimizer, the methods, the precision and the micro-batch are chosen so that the run fits; the rest
    of the recipe stays. The run stops after its second step if it needs more than 10 % beyond the plan.

    The run folder holds report.html, metrics.jsonl, recipe.yaml, summary.json, checkpoints and the trained model.
    Ctrl-C finishes the step, writes a checkpoint and shows the command that goes on. --resume without --out takes the
    newest run of the recipe; with other steps or epochs a finished run gets longer.

    [bold]Examples[/bold]

    fw train recipe.yaml

    fw train recipe.yaml optimizer=galore_8bit optimizer.rank=64 steps=500 --out runs/rank64

    fw train recipe.yaml --resume steps=2000

    fw train recipe.yaml --plan 16GB

    fw train recipe.yaml sharding=ddp --nproc 2
    """
    check_recipe(recipe, changes)
    _look_first(recipe, changes, out, resume=resume)
    if nproc is not None:
        from featherweight.cli.processes import become_processes, words_of

        options = {"--out": out, "--plan": plan, "--resume": resume, "--predict": predict, "--json": as_json}
        become_processes(nproc, ["train", str(recipe), *(changes or []), *words_of(options), *import_words(imports)])
    from featherweight.distributed import is_first, start, stop
    from featherweight.distributed.world import World
    from featherweight.planner.train import train_with_advice

    start()
    callbacks: list[Any] | None = [] if as_json else None
    # A planned run goes on with what was planned, which stands in its folder.
    words = [str(recipe), *(changes or []), *import_words(imports)] if plan is None else None
    if resume and plan is None and not predict:
        out = World().on_first(lambda: _run_to_resume(recipe, changes or [], out))
    with leave_cleanly("train", words, lambda interruption: interruption.checkpoint.parents[1]):
        if plan is None:
            common: dict[str, Any] = {"out": out, "resume": resume, "callbacks": callbacks}
            run = train_with_advice(recipe, overrides=changes or [], predict=predict, **common)
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


def _look_first(recipe: Path, changes: list[str] | None, out: Path | None, *, resume: bool) -> None:
    """Say what cannot be trained on, or resumed, before anything heavy is imported."""
    if not resume:
        from featherweight.config import read_mapping
        from featherweight.text.first_look import look_first

        if out is not None and "TORCHELASTIC_RUN_ID" not in os.environ:  # the first of several processes makes it
            from featherweight.training.run_folder import check_place

            check_place(out)
        look_first(read_mapping(recipe), changes)
    elif out is not None and "WORLD_SIZE" not in os.environ:  # several processes look together, when they have met
        from featherweight.training.run_folder import require_run

        require_run(out)


def _run_to_resume(recipe: Path, changes: list[str], out: Path | None) -> Path:
    """Return the folder of the run that goes on, and say what stands in it."""
    from featherweight.training.recipe import load_recipe
    from featherweight.training.resume import describe_run, find_run
    from featherweight.training.run import run_name

    chosen = load_recipe(recipe, changes)
    found = find_run(chosen, run_name(recipe, chosen)) if out is None else describe_run(out)
    if found is None:
        assert out is not None
        return out  # which is refused in a sentence
    print_notice(f"resume: {found.sentence}")
    return found.folder
