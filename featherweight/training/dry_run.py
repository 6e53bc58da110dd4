"""`measure`: a few steps of a recipe, made only to see what memory they need; nothing is kept."""

from collections.abc import Iterable

from featherweight.report import Report
from featherweight.training.footprint import Footprint
from featherweight.training.loop import Loop
from featherweight.training.out_of_memory import explain_out_of_memory
from featherweight.training.recipe import RecipeSource, load_recipe
from featherweight.training.run import run_name
from featherweight.training.summary import memory_report


def measure(recipe: RecipeSource, *, overrides: Iterable[str] = (), steps: int = 3) -> tuple[Footprint, Report]:
    """Make a few optimizer steps of a recipe and measure each of them by category.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        overrides: "key=value" changes of the recipe.
        steps: optimizer steps to make, >= 1. The first one creates the optimizer's state and, with GaLore, the bases.

    Returns:
        The bytes, predicted and measured, and the report that shows them.

    Raises:
        ConfigError: if the recipe is wrong.
        DeviceError: if memory runs out.
        NumericsError: if the loss is not finite.
    """
    parsed = load_recipe(recipe, [*overrides, f"memory_steps={list(range(1, steps + 1))}"])
    with explain_out_of_memory(parsed):
        loop = Loop(parsed)
        for _ in range(steps):
            loop.step()
    title = f"Memory of {steps} steps: {run_name(recipe, parsed)}, {parsed.optimizer['name']}"
    return loop.footprint, memory_report(title, parsed.optimizer["name"], loop.footprint)
