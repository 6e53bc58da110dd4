"""What fills the memory of a recipe, and which single changes save most for least."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.planner.need import need_of
from featherweight.planner.target import Target
from featherweight.planner.time_model import seconds_of
from featherweight.training.estimate import estimate_memory
from featherweight.training.recipe import Recipe

_NOTICEABLE = 1.02
"""A change is free if the work of a step grows by less than this."""


@dataclass(frozen=True)
class Change:
    """One change of a recipe."""

    name: str
    """What to do, in words."""
    overrides: tuple[str, ...]
    """The same as key=value on the command line."""
    saved_bytes: int
    """How much less the device needs."""
    time_ratio: float
    """Duration of a step over the present one, by the time model."""
    is_free: bool
    """No more arithmetic, no copies to the host, no longer step."""
    is_exact: bool
    """The numbers that are computed stay the same."""


def changes(recipe: Recipe, target: Target, *, limit: int = 3) -> list[Change]:
    """Return the changes of a recipe that save memory, the cheapest first: exact ones before others, free ones before
    others, then by what they save.

    Args:
        recipe: as it is.
        target: the device.
        limit: how many to return.
    Cost: a simulation for each possible change, some seconds each.
    """
    present = estimate_memory(None, recipe, device=target.device)
    need, seconds = need_of(present, target).total_bytes, seconds_of(present.cost, target)
    found = []
    for name, overrides, is_exact in _possible(recipe):
        try:
            estimate = estimate_memory(None, recipe.override(overrides), device=target.device)
        except FeatherweightError:
            continue  # it does not go together with the rest of the recipe
        saved = need - need_of(estimate, target).total_bytes
        if saved > 0.01 * need:
            ratio = seconds_of(estimate.cost, target) / seconds
            work = sum(estimate.cost.flops.values()) / sum(present.cost.flops.values())
            is_free = max(work, ratio) < _NOTICEABLE and estimate.cost.host_bytes <= present.cost.host_bytes
            found.append(Change(name, overrides, saved, ratio, is_free, is_exact))
    found.sort(key=lambda one: (not one.is_exact, not one.is_free, -one.saved_bytes))
    return found[:limit]


def _possible(recipe: Recipe) -> list[tuple[str, tuple[str, ...], bool]]:
    named = {entry if isinstance(entry, str) else next(iter(entry)): entry for entry in recipe.methods}
    others = [entry for name, entry in named.items() if name != "mst"]
    optimizer = recipe.optimizer_config()
    found: list[tuple[str, tuple[str, ...], bool]] = []
    if "mst" not in named:
        found.append(("loss in chunks", (_methods([*others, {"mst": {"mlp": False}}]),), True))
        found.append(("loss and feed-forward layers in chunks", (_methods([*others, {"mst": {}}]),), True))
    present: Mapping[str, Any] = named["mst"]["mst"] if isinstance(named.get("mst"), Mapping) else {}
    if not recipe.activation_checkpointing and not present.get("checkpoint"):
        if "mst" in named:
            found.append(("checkpointing", (_methods([*others, {"mst": {**present, "checkpoint": True}}]),), True))
        else:
            found.append(("checkpointing", ("activation_checkpointing=true",), True))
    if present.get("checkpoint") != "offload":
        options = {**present, "checkpoint": "offload", "tokenwise": True}
        lines = ("activation_checkpointing=false", _methods([*others, {"mst": options}]))
        found.append(("checkpoints in host memory, whole layers in chunks", lines, True))
    if not optimizer.layerwise:
        found.append(("layer-wise updates", ("optimizer.layerwise=true",), True))
    if recipe.accumulation_steps * recipe.micro_batch_size > 1 and recipe.micro_batch_size > 1:
        rows = recipe.accumulation_steps * recipe.micro_batch_size
        found.append(("micro-batches of one row", ("micro_batch_size=1", f"accumulation_steps={rows}"), True))
    if recipe.precision != "bf16":
        found.append(("bfloat16 weights", ("precision=bf16",), False))
    if optimizer.state_bits > 8 and not {"lora", "s2ft"} & set(named):
        found.append(("8-bit moments", ("optimizer.state_bits=8",), False))
    if optimizer.name in ("adamw", "adamw_8bit") and not {"lora", "s2ft"} & set(named):
        galore = ("optimizer=galore_8bit", "optimizer.rank=0.25", "optimizer.layerwise=true")
        found.append(("GaLore of a quarter of the rank, layer-wise", galore, False))
    return found


def _methods(entries: list[Any]) -> str:
    import json

    return f"methods={json.dumps(entries)}"
