"""`fw measure`: see what memory a recipe needs, without training it."""

from typing import Annotated

import typer

from featherweight.cli.recipe_check import check_recipe
from featherweight.cli.screen import AsJson, Imports, Overrides, RecipeFile, leave_cleanly, print_json, print_result


def measure(
    recipe: RecipeFile,
    changes: Overrides = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps to make.")] = 3,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Make a few steps of a recipe on its real model and show their memory by category.

    Predicted and measured bytes of weights, gradients and optimizer state stand side by side; nothing is written.

    [bold]Examples[/bold]

    fw measure recipe.yaml

    fw measure recipe.yaml optimizer=galore_8bit optimizer.rank=64 micro_batch_size=1
    """
    check_recipe(recipe, changes)
    from featherweight.training.dry_run import measure as make_steps

    with leave_cleanly("measure", [str(recipe)]):
        footprint, report = make_steps(recipe, overrides=changes or [], steps=steps)
        if as_json:
            print_json({"peak_bytes": footprint.peak_bytes, **footprint.to_dict()})
        else:
            print_result(report, None)
