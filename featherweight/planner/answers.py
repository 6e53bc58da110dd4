"""`answer`: a plan together with the questions about it, as `fw plan --solve --why` asks them."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from featherweight.errors import ConfigError
from featherweight.planner.advice import Why, explain
from featherweight.planner.host import HostNeed
from featherweight.planner.layered import as_it_stands, plan_by_layers
from featherweight.planner.plan import Plan, plan
from featherweight.planner.solve import Solution, check_unknown, solve
from featherweight.planner.target import Target
from featherweight.training.recipe import RecipeSource, load_recipe


@dataclass(frozen=True)
class Answers:
    """A plan, and what was asked beside it."""

    plan: Plan
    """What fits, what does not and why."""
    solution: Solution | None = None
    """The setting that was solved for."""
    unsolvable: str | None = None
    """Why there is no such setting, where nothing fits."""
    reasons: Why | None = None
    """What fills the memory, and what to change."""
    host: HostNeed | None = None
    """What the recipe takes of the host, where that has a budget."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: those of the plan, and beside them "solution" and "why"."""
        content = self.plan.to_dict()
        if self.solution is not None:
            content["solution"] = {
                "unknown": self.solution.unknown,
                "value": self.solution.value,
                "total_bytes": self.solution.need.total_bytes,
            }
        elif self.unsolvable is not None:
            content["solution"] = {"value": None, "reason": self.unsolvable}
        if self.host is not None:
            content["host"] = {**asdict(self.host), "total_bytes": self.host.total_bytes}
        if self.reasons is not None:
            content["why"] = self.reasons.to_dict()
        return content


def answer(
    model: Any,
    budget: str | int | None = None,
    *,
    recipe: RecipeSource | None = None,
    device: str | torch.device | None = None,
    unknown: str | None = None,
    why: bool = False,
    host_memory: str | int | None = None,
    **options: Any,
) -> Answers:
    """Search for recipes that fit a budget, and answer questions about one of them.

    With a recipe and without a model the questions are about that recipe as it stands; else about the best one of the
    plan, or the nearest where nothing fits.

    Args:
        model: as for `fw.plan`.
        budget: as for `fw.plan`.
        recipe: as for `fw.plan`.
        device: as for `fw.plan`.
        unknown: setting to solve for, as for `fw.solve`; None asks for none.
        why: say what fills the memory and what to change.
        host_memory: a second budget: a recipe with ``schedule.order=layer`` is judged by both; for a model, recipes
            whose steps go layer by layer are searched for.
        options: others of `fw.plan`.
    Raises:
        ConfigError: if an argument is wrong, the model cannot be simulated, or no value of the setting fits although
            recipes do.
    Cost: that of `fw.plan`, and some ten simulations for each question.
    """
    if unknown is not None:
        check_unknown(unknown)
    tell = options.get("on_progress") or (lambda _: None)
    asked = load_recipe(recipe) if recipe is not None and model is None else None
    if host_memory is None:
        found = plan(model, budget, recipe=recipe, device=device, **options)
    elif model is None:
        found = as_it_stands(asked, Target.of(budget, device), host_memory)
    else:
        found = plan_by_layers(model, budget, host_memory, recipe=recipe, device=device, **options)
    row = found.rows[0] if found.rows else found.nearest
    about = asked or (None if row is None else row.recipe)
    solution = unsolvable = reasons = None
    if unknown is not None and about is not None:
        tell(f"what {unknown} fits")
        try:
            solution = solve(unknown, None, about, budget, device=device, host_memory=host_memory)  # type: ignore[arg-type]
        except ConfigError as reason:
            if found.rows:
                raise
            unsolvable = str(reason)
    if why and about is not None:
        tell("single changes")
        reasons = found.why() if asked is None else explain(asked, found.target, name="the recipe as it stands")
    return Answers(found, solution, unsolvable, reasons, None if row is None else row.host)
