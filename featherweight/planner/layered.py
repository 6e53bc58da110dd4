"""Recipes whose steps go layer by layer, under two budgets: what a device and a host of so much memory train together.

For each family weights and optimizer states of the layers stay on the device if they fit; else the weights wait on the
host, or both; layer inputs wait on the host always.
Without layer-wise updates no weight could move while it is there, so every family takes them.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import torch

from featherweight.errors import ConfigError, FeatherweightError
from featherweight.planner.candidates import FAMILIES, ActivationStrategy, Family, families_without, recipe_of
from featherweight.planner.host import host_limit, host_need, require_host
from featherweight.planner.need import expandable_need_of, need_of
from featherweight.planner.plan import Plan, base_recipe, row_of
from featherweight.planner.row import PlanRow
from featherweight.planner.target import Target
from featherweight.planner.time_model import seconds_of
from featherweight.report import format_bytes
from featherweight.training.estimate import estimate_memory, formula_bytes
from featherweight.training.passes import DEFAULT_CHUNK_TOKENS
from featherweight.training.recipe import Recipe, RecipeSource

CHUNKS = ActivationStrategy("layer by layer", ({"mst": {}},))
"""Inside of a chunk, too, feed-forward layer and head take their tokens in parts."""
MOVED: Mapping[str, tuple[str, ...]] = {"none": (), "weights": ("weights",), "both": ("weights", "states")}
"""What waits on the host beside the inputs of the layers, from the fastest to the smallest."""
_MUCH = 1.1
"""Segments over tensors from which on a plan says what other settings of the allocator would save."""


def plan_by_layers(
    model: Any,
    budget: str | int | None,
    host_memory: str | int,
    *,
    recipe: RecipeSource | None = None,
    device: str | torch.device | None = None,
    seq_len: int | None = None,
    tokens_per_step: int | None = None,
    exclude: Collection[str] = (),
    limit: int | None = None,
    calibration: str | PathLike[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Plan:
    """Search for recipes whose steps go layer by layer and that two budgets hold.

    Args:
        model: as for `fw.plan`, as are the others but for `host_memory`.
        budget: of the device.
        host_memory: what the process may take of the host.
        recipe: gives data, steps and batch.
        device: as for `fw.plan`.
        seq_len: tokens of a row.
        tokens_per_step: tokens of one optimizer step.
        exclude: tags of what must not be given up.
        limit: stop once so many recipes fit, the most faithful ones; None tries all.
        calibration: file of a measured card.
        on_progress: told what is being simulated.
    Raises:
        ConfigError: as for `fw.plan`.
    Cost: up to three simulations a family, some 10 s of one core each at 8B.
    """
    started, host_bytes = time.monotonic(), host_limit(host_memory)
    families = _layer_wise_families(exclude)
    target = Target.of(budget, device, calibration=calibration)
    base = base_recipe(model, recipe, seq_len, tokens_per_step)
    tell = on_progress or (lambda _: None)
    rows: list[PlanRow] = []
    refused: dict[str, str] = {}
    missed: list[PlanRow] = []
    for family in families:
        if len(rows) == limit:
            break
        try:
            row, reason = _first_fit(base, family, target, host_bytes, tell)
        except FeatherweightError as error:
            refused[family.name] = str(error)
            continue
        if reason is None:
            rows.append(row)
        else:
            refused[family.name] = reason
            missed.append(row)
    nearest = min(missed, key=lambda one: _share(one, target, host_bytes)) if missed and not rows else None
    shown = rows[0] if rows else nearest
    lines = [] if shown is None else _host_lines(shown, target)
    return Plan(target, rows, refused, lines, time.monotonic() - started, nearest)


def as_it_stands(recipe: Recipe | None, target: Target, host_memory: str | int) -> Plan:
    """Judge a recipe whose steps go layer by layer by two budgets.

    Args:
        recipe: as it is.
        target: the device.
        host_memory: what the process may take of the host.
    Raises:
        ConfigError: for a recipe whose steps do not go layer by layer.
    Cost: one simulation.
    """
    if recipe is None or recipe.schedule.order != "layer":
        found = "no recipe" if recipe is None else f"schedule.order={recipe.schedule.order}"
        raise ConfigError(
            f"plan: host-memory={host_memory} with {found}; expected a model, or a recipe whose steps go layer by "
            "layer, as only these keep anything on the host. Set schedule.order=layer, inputs=host and weights=host "
            "in it, or name a model."
        )
    started = time.monotonic()
    estimate = estimate_memory(None, recipe, device=target.device)
    need, speed = need_of(estimate, target), estimate.tokens_per_step / seconds_of(estimate.cost, target)
    name = "the recipe as it stands"
    row = PlanRow(name, "layer by layer", (), recipe, estimate, need, speed, host_need(recipe))
    refused = {}
    try:
        require_host(recipe, host_memory)
    except ConfigError as error:
        refused[name] = str(error)
    if not need.fits(target):
        refused[name] = f"needs {format_bytes(need.total_bytes)} of {format_bytes(target.usable_bytes)}"
    rows, nearest = ([], row) if refused else ([row], None)
    return Plan(target, rows, refused, _host_lines(row, target), time.monotonic() - started, nearest)


def layer_wise(family: Family) -> Family:
    """Return a family with updates in the turn of each layer: no other moves a weight that waits on the host."""
    return replace(family, optimizer={**family.optimizer, "layerwise": True})


def layered_recipe(base: Recipe, family: Family, moved: str) -> Recipe:
    """Return a recipe of a family whose steps go layer by layer.

    Args:
        base: data, steps and sequence length.
        family: what is trained.
        moved: what waits on the host beside layer inputs; a key of `MOVED`.
    """
    length = getattr(base.task_config(), base.length_key().removeprefix("task."))
    chunks = base.schedule.chunk_tokens or min(DEFAULT_CHUNK_TOKENS, length)
    plain = recipe_of(base, layer_wise(family), CHUNKS, is_pretrained=base.task_class.is_pretrained(base.task_config()))
    places = [f"schedule.{key}=host" for key in ("inputs", *MOVED[moved])]
    return plain.override(["schedule.order=layer", f"schedule.chunk_tokens={chunks}", *places])


def _layer_wise_families(exclude: Collection[str]) -> list[Family]:
    """Return the families that can be updated layer by layer; of twins the one that is so already."""
    allowed = [family for choices in families_without(exclude) for family in choices]
    names = {family.name for family in FAMILIES}
    return [family for family in allowed if f"{family.name}, layer-wise" not in names]


def _first_fit(
    base: Recipe, family: Family, target: Target, host_bytes: int, tell: Callable[[str], None]
) -> tuple[PlanRow, str | None]:
    """Return the recipe with most on the device that fits, or the smallest, and why that does not fit."""
    fixed = formula_bytes(layered_recipe(base, family, "none"))
    least = {"none": fixed["weights"] + fixed["optimizer_state"], "weights": fixed["optimizer_state"], "both": 0}
    row, reason = None, ""
    for moved in [one for one, size in least.items() if size <= target.usable_bytes]:
        recipe, keeping = layered_recipe(base, family, moved), f"layer by layer; on the host: {_words(moved)}"
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


def _words(moved: str) -> str:
    return ", ".join(("inputs", *MOVED[moved]))


def _host_lines(row: PlanRow, target: Target) -> list[str]:
    """Say what a step keeps on the host and moves over the link."""
    host = row.host
    assert host is not None
    link, seconds = host.link_seconds(target), row.estimate.tokens_per_step / row.tokens_per_s
    return [
        *_growing_line(row, target),
        f"host: {host.total_bytes / 2**30:.2f} GiB, of it layer inputs {host.inputs_bytes / 2**30:.2f}, weights "
        f"{host.weights_bytes / 2**30:.2f} and states {host.states_bytes / 2**30:.2f}",
        f"over the link in a step: {host.read_bytes / 2**30:.2f} GiB in, {host.written_bytes / 2**30:.2f} GiB out"
        + ("" if link is None else f", {link:.2f} s of a step of {seconds:.2f} s"),
    ]


def _growing_line(row: PlanRow, target: Target) -> list[str]:
    """Say what segments that grow would save, where the allocator's usual ones hold much that nobody uses."""
    if target.calibration is None or row.need.reserved_bytes < _MUCH * row.need.allocated_bytes:
        return []
    growing = expandable_need_of(row.estimate, target).total_bytes
    return [f"with PYTORCH_ALLOC_CONF=expandable_segments:True {row.family} needs {format_bytes(growing)}"]
