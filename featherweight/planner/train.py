"""`train_planned`: plan a recipe for a budget, train it, and hold the run to the plan."""

from collections.abc import Collection
from typing import Any

import torch

from featherweight.errors import ConfigError, DeviceError, OutOfMemoryError
from featherweight.planner.advice import explain
from featherweight.planner.plan import Plan, plan
from featherweight.planner.target import Target
from featherweight.training.estimate import MemoryEstimate, estimate_memory
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe
from featherweight.training.run import Run, train


def planned(
    recipe: RecipeSource, budget: str | int | None = None, *, device: str | None = None, exclude: Collection[str] = ()
) -> tuple[Plan, Recipe]:
    """Return a plan for the data, model and batch of a recipe, and the recipe with the plan's best choices.

    What the plan decides (optimizer, methods, precision, checkpointing, micro-batch) replaces what the recipe says of
    these; a learning rate of the recipe stays if its optimizer does.

    Raises:
        ConfigError: if nothing fits.
    """
    base = load_recipe(recipe)
    found = plan(None, budget, device=device or _present_device(), recipe=base, exclude=exclude)
    best = found.best.recipe
    if best.optimizer["name"] == base.optimizer["name"] and "lr" in base.optimizer:
        best = Recipe.parse({**best.to_dict(), "optimizer": {**best.optimizer, "lr": base.optimizer["lr"]}})
    return found, best


def train_planned(
    recipe: RecipeSource, budget: str | int | None = None, *, device: str | None = None, **options: Any
) -> Run:
    """Plan a recipe for a budget, and train it.

    The report of the run shows predicted beside measured memory; the run stops after its second step if it needs more
    than 10 % beyond the plan.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        budget: as for `fw.plan`.
        device: as for `fw.plan`; None takes the device on which training runs.
        options: as for `fw.train`.
    Raises:
        ConfigError: if nothing fits.
        DeviceError: if the run needs more than planned, or memory runs out; names the cheapest changes.
    """
    found, best = planned(recipe, budget, device=device)
    estimate = found.best.estimate
    try:
        return train(best, estimate=estimate, **options)
    except OutOfMemoryError as error:
        raise explained(error, best, found.target) from error


def predicted(recipe: Recipe) -> MemoryEstimate:
    """Return the estimate of a recipe for the device on which training runs.

    Raises:
        ConfigError: if it cannot be simulated.
    """
    return estimate_memory(None, recipe, device="cuda" if torch.cuda.is_available() else "cpu")


def explained(error: DeviceError, recipe: Recipe, target: Target | None = None) -> DeviceError:
    """Return an error of memory that ran out with what fills the memory, and the three cheapest changes.

    Args:
        error: as training raised it.
        recipe: that ran.
        target: the device; None takes the one on which training runs.
    Cost: some simulations, a few seconds each.
    """
    try:
        found = explain(recipe, target or Target.of(device=_present_device()))
    except ConfigError:
        return error  # it cannot be simulated; what is known stands in the error
    return type(error)(f"{error} {found.sentence}")


def _present_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
