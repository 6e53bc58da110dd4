"""`fw train`: run a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.screen import AsJson, Overrides, RecipeFile, Resume, leave_cleanly, print_json, print_result


def train(
    recipe: RecipeFile,
    changes: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The run folder; default: runs/<name>-<time>.", show_default=False),
    ] = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a model as a recipe says.

    The run folder holds report.html, metrics.jsonl, recipe.yaml, summary.json, checkpoints and the trained model.
    Ctrl-C finishes the current step, writes a checkpoint and shows the command that goes on from there.

    [bold]Examples[/bold]

    fw train recipe.yaml

    fw train recipe.yaml optimizer=galore_8bit optimizer.rank=64 steps=500 --out runs/rank64

    fw train recipe.yaml --out runs/rank64 --resume
    """
    from featherweight.training.run import train as run_training

    words = [str(recipe), *(changes or [])]
    with leave_cleanly("train", words, lambda interruption: interruption.checkpoint.parents[1]):
        run = run_training(recipe, overrides=changes or [], out=out, resume=resume, callbacks=[] if as_json else None)
        if as_json:
            print_json({"folder": str(run.folder), **run.summary.to_dict()})
        else:
            print_result(run.report, run.folder)
