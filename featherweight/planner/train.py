"""Training with the planner beside it: planned for a budget first, or as the recipe stands, with advice if it fails."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from featherweight.errors import ConfigError, DeviceError, OutOfMemoryError
from featherweight.planner.advice import explain
from featherweight.planner.plan import Plan, plan
from featherweight.planner.target import Target
from featherweight.training.estimate import MemoryEstimate, estimate_memory
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe
from featherweight.training.run import Run, run_name, train


def train_planned(
    recipe: RecipeSource,
    budget: str | int | None = None,
    *,
    overrides: Iterable[str] = (),
    device: str | None = None,
    resume: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Run:
    """Plan a recipe for a budget, and train it.

    The report of the run shows predicted beside measured memory; the run stops after its second step if it needs more
    than 10 % beyond the plan.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        budget: as for `fw.plan`.
        overrides: "key=value" changes of the recipe, made before it is planned.
        device: as for `fw.plan`; None takes the device on which training runs.
        resume: must be False: a run goes on with the recipe in its folder, by `fw.train`.
        on_plan: is shown the plan before the training begins.
        on_progress: told what is being simulated.
        options: as for `fw.train`.
    Raises:
        ConfigError: if nothing fits.
        DeviceError: if the run needs more than planned, or memory runs out; names the cheapest changes.
    """
    _refuse_resume(resume)
    base = load_recipe(recipe, overrides)
    # The name of the file, which the planned recipe does not come from.
    base = Recipe.parse({**base.to_dict(), "name": run_name(recipe, base)})
    found, best = plan_recipe(base, budget, device=device, on_progress=on_progress)
    if on_plan is not None:
        on_plan(found)
    with _advice(best, found.target):
        return train(best, estimate=found.best.estimate, **options)


def train_with_advice(
    recipe: RecipeSource,
    *,
    overrides: Iterable[str] = (),
    predict: bool = False,
    resume: bool = False,
    **options: Any,
) -> Run:
    """Train a recipe as it stands; if memory runs out, say what fills it and which changes are the cheapest.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        overrides: "key=value" changes of the recipe.
        predict: simulate it first; the report then shows predicted beside measured memory.
        resume: as for `fw.train`; not together with `predict`.
        options: as for `fw.train`.
    Raises:
        ConfigError: if the recipe is wrong, or is to be simulated and cannot be.
        DeviceError: if memory runs out, or the run needs more than predicted.
    """
    overrides = list(overrides)
    chosen = load_recipe(recipe, overrides)
    if predict:
        _refuse_resume(resume)
    estimate = predict_memory(chosen) if predict else None
    with _advice(chosen):
        return train(recipe, overrides=overrides, resume=resume, estimate=estimate, **options)


def plan_recipe(
    recipe: RecipeSource,
    budget: str | int | None = None,
    *,
    device: str | None = None,
    exclude: Collection[str] = (),
    on_progress: Callable[[str], None] | None = None,
) -> tuple[Plan, Recipe]:
    """Return a plan for the data, model and batch of a recipe, and the recipe with the plan's best choices.

    What the plan decides (optimizer, methods, precision, checkpointing, micro-batch) replaces what the recipe says of
    these; a learning rate of the recipe stays if its optimizer does.

    Raises:
        ConfigError: if nothing fits.
    """
    base = load_recipe(recipe)
    found = plan(
        None, budget, device=device or _present_device(), recipe=base, exclude=exclude, on_progress=on_progress
    )
    best = found.best.recipe
    if best.optimizer["name"] == base.optimizer["name"] and "lr" in base.optimizer:
        best = Recipe.parse({**best.to_dict(), "optimizer": {**best.optimizer, "lr": base.optimizer["lr"]}})
    return found, best


def predict_memory(recipe: Recipe) -> MemoryEstimate:
    """Return the estimate of a recipe for the device on which training runs.

    Raises:
        ConfigError: if it cannot be simulated.
    """
    return estimate_memory(None, recipe, device=_present_device())


def add_advice(error: DeviceError, recipe: Recipe, target: Target | None = None) -> DeviceError:
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


@contextmanager
def _advice(recipe: Recipe, target: Target | None = None) -> Iterator[None]:
    try:
        yield
    except OutOfMemoryError as error:
        raise add_advice(error, recipe, target) from error


def _refuse_resume(resume: bool) -> None:
    if resume:
        raise ConfigError(
            "train: resume=True goes on with the recipe of the run; expected it without a plan or a prediction. Leave "
            "out --plan and --predict, and give the recipe.yaml of the run's folder."
        )


def _present_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
