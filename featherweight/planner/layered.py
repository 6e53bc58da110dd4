"""Recipes whose steps go layer by layer, under two budgets: what a device and a host of so much memory train together.

For each family weights and optimizer states of the layers stay on the device if they fit; else the weights wait on the
host, or both; layer inputs wait on the host always.
Without layer-wise updates no weight could move while it is there, so every family takes them.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from featherweight.errors import FeatherweightError
from featherweight.planner.candidates import FAMILIES, ActivationStrategy, Family, families_without, recipe_of
from featherweight.planner.host import host_need
from featherweight.planner.plan import row_of
from featherweight.planner.row import PlanRow
from featherweight.planner.target import Target
from featherweight.report import format_bytes
from featherweight.training.estimate import formula_bytes
from featherweight.training.passes import DEFAULT_CHUNK_TOKENS
from featherweight.training.recipe import Recipe

CHUNKS = ActivationStrategy("layer by layer", ({"mst": {}},))
"""Inside of a chunk, too, feed-forward layer and head take their tokens in parts."""
_MOVED = {"none": (), "weights": ("weights",), "both": ("weights", "states")}
"""What waits on the host beside the inputs of the layers, from the fastest to the smallest."""


def layered_rows(
    base: Recipe,
    target: Target,
    host_bytes: int,
    *,
    exclude: Collection[str] = (),
    limit: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[list[PlanRow], dict[str, str], PlanRow | None]:
    """Return the recipes that fit both budgets, why others do not, and where none fits the one that lacks least.

    Args:
        base: data, steps and sequence length.
        target: the device.
        host_bytes: what the process may take of the host.
        exclude: tags of what must not be given up.
        limit: stop once so many recipes fit, the most faithful ones; None tries all.
        tell: told what is being simulated.
    Cost: up to three simulations a family, some 10 s of one core each at 8B.
    """
    rows: list[PlanRow] = []
    refused: dict[str, str] = {}
    missed: list[PlanRow] = []
    for family in _layer_wise_families(exclude):
        if len(rows) == limit:
            break
        try:
            found, reason = _first_fit(base, family, target, host_bytes, tell)
        except FeatherweightError as error:
            refused[family.name] = str(error)
            continue
        if reason is None:
            rows.append(found)
        else:
            refused[family.name] = reason
            missed.append(found)
    nearest = min(missed, key=lambda one: _share(one, target, host_bytes)) if missed and not rows else None
    return rows, refused, nearest


def _layer_wise_families(exclude: Collection[str]) -> list[Family]:
    """Return the families that can be updated layer by layer; of twins the one that is so already."""
    allowed = [family for choices in families_without(exclude) for family in choices]
    names = {family.name for family in FAMILIES}
    return [
        replace(family, optimizer={**family.optimizer, "layerwise": True})
        for family in allowed
        if f"{family.name}, layer-wise" not in names
        and family.methods != ("s2ft",)
        and "base4bit" not in family.methods
    ]


def _first_fit(
    base: Recipe, family: Family, target: Target, host_bytes: int, tell: Callable[[str], None]
) -> tuple[PlanRow, str | None]:
    """Return the recipe with weights on the device, or with weights on the host, and why it does not fit."""
    pretrained = base.task_class.is_pretrained(base.task_config())
    length = getattr(base.task_config(), base.length_key().removeprefix("task."))
    plain = recipe_of(base, family, CHUNKS, is_pretrained=pretrained)
    chunks = base.schedule.chunk_tokens or min(DEFAULT_CHUNK_TOKENS, length)
    row, reason = None, ""
    fixed = formula_bytes(plain)
    least = {"none": fixed["weights"] + fixed["optimizer_state"], "weights": fixed["optimizer_state"], "both": 0}
    for moved in [one for one, size in least.items() if size <= target.usable_bytes]:
        places = {"inputs": "host", **{key: "host" for key in _MOVED[moved]}}
        placed = [f"schedule.{key}={place}" for key, place in places.items()]
        recipe = plain.override(["schedule.order=layer", f"schedule.chunk_tokens={chunks}", *placed])
        keeping = f"layer by layer; on the host: {', '.join(places)}"
        tell(f"{family.name}, {keeping}")
        row = replace(row_of(family, CHUNKS, recipe, target), keeping=keeping, host=host_need(recipe))
        assert row.host is not None
        if row.host.total_bytes > host_bytes:
            reason = f"needs {format_bytes(row.host.total_bytes)} of the host's {format_bytes(host_bytes)}"
            break  # more on the host would take still more of it
        if row.need.fits(target):
            return row, None
        reason = f"needs {format_bytes(row.need.total_bytes)} of {format_bytes(target.usable_bytes)}"
    assert row is not None
    return row, reason


def _share(row: PlanRow, target: Target, host_bytes: int) -> float:
    """Return how full the fuller of both memories is."""
    assert row.host is not None
    return max(row.need.total_bytes / target.usable_bytes, row.host.total_bytes / host_bytes)
