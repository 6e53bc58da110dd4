"""Plans of recipes whose task has no rows of some length, such as neural operators and maps from cameras.

What fits is asked of the recipe as it stands, under the optimizers that it names for comparison and under AdamW.
"""

from collections.abc import Callable

from featherweight.errors import FeatherweightError
from featherweight.optim import optimizers
from featherweight.planner.need import need_of
from featherweight.planner.row import PlanRow
from featherweight.planner.target import Target
from featherweight.planner.time_model import seconds_of
from featherweight.report import format_bytes
from featherweight.training.compare import method_recipe
from featherweight.training.estimate import estimate_memory
from featherweight.training.recipe import Recipe

KEEPING = "as the recipe says"
ALWAYS = ("adamw", "adamw_8bit")
TENSORS = ("tensor_galore", "tensor_galore_8bit")


def operator_rows(
    base: Recipe, target: Target, *, limit: int | None = None, tell: Callable[[str], None] = lambda _: None
) -> tuple[list[PlanRow], dict[str, str], PlanRow | None]:
    """Simulate a recipe under several optimizers.

    Args:
        base: the recipe; its micro-batch stays.
        target: for which device.
        limit: stop once so many fit.
        tell: told what is being simulated.
    Returns:
        What fits, from the most faithful; what does not and why; and of these the one that lacks least.
    Cost: one estimate for each optimizer, some seconds.
    """
    own = base.optimizer["name"]
    names = dict.fromkeys([own, *base.compare, *ALWAYS, *(TENSORS if _projects_tensors(base) else ())])
    recipes = {name: base if name == own else method_recipe(base, name) for name in names}
    fitting: list[PlanRow] = []
    refused: dict[str, str] = {}
    misses: list[PlanRow] = []
    for name in sorted(names, key=lambda one: len(_tags(recipes[one]))):  # in order where they give up as much
        if len(fitting) == limit:
            break
        tell(name)
        try:
            row = _row_of(name, recipes[name], target)
        except FeatherweightError as error:
            refused[name] = str(error)
            continue
        if row.need.fits(target):
            fitting.append(row)
        else:
            misses.append(row)
            refused[name] = f"needs {format_bytes(row.need.total_bytes)} of {format_bytes(target.usable_bytes)}"
    nearest = min(misses, key=lambda row: row.need.total_bytes, default=None)
    return fitting, refused, None if fitting else nearest


def _row_of(name: str, recipe: Recipe, target: Target) -> PlanRow:
    estimate = estimate_memory(None, recipe, device=target.device)
    speed = estimate.tokens_per_step / seconds_of(estimate.cost, target)
    return PlanRow(name, KEEPING, _tags(recipe), recipe, estimate, need_of(estimate, target), speed)


def _tags(recipe: Recipe) -> tuple[str, ...]:
    config = recipe.optimizer_config()
    few_bits = ("8-bit-states",) if config.state_bits < 16 else ()
    return (*few_bits, *(("low-rank",) if getattr(config, "rank", None) is not None else ()))


def _projects_tensors(base: Recipe) -> bool:
    named = [base.optimizer["name"], *base.compare]
    return any(one in optimizers and "Tensor" in optimizers.get(one).optimizer.__name__ for one in named)
