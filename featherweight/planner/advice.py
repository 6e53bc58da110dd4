"""What fills the memory of a recipe, and which single changes save most for least."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from featherweight.errors import FeatherweightError
from featherweight.memory import Allocation
from featherweight.memory.ledger import Category, Phase
from featherweight.planner.allocations import add_largest, allocation_dict, allocation_line
from featherweight.planner.need import Need, need_of
from featherweight.planner.target import Target
from featherweight.planner.time_model import seconds_of
from featherweight.report import Report, format_bytes
from featherweight.training.estimate import MemoryEstimate, estimate_memory
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe

_GIB = 2**30
_LARGEST = 5
"""Allocations that are named."""
_SHARE = 0.01
"""A change that saves less than this of the recipe's own tensors is not worth a line."""
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

    def __str__(self) -> str:
        same = "same numbers" if self.is_exact else "other numbers"
        return f"{self.name}: -{format_bytes(self.saved_bytes)}, time x {self.time_ratio:.2f}, {same}"


@dataclass(frozen=True)
class Why:
    """What fills the memory of a recipe at its peak, together with the cheapest changes.

    `print(why)` gives a few lines, `report()` tables.
    """

    name: str
    """Of the recipe, for headings."""
    recipe: Recipe
    """What was simulated."""
    need: Need
    """What it takes of the device."""
    phase: Phase
    """Phase in which the tensors take most."""
    by_category: Mapping[Category, int]
    """Bytes of each category at that moment."""
    largest: list[tuple[Allocation, int]]
    """The largest kinds of storages alive at that moment and how many there are of each, the most bytes first."""
    largest_tensor: Allocation
    """The largest single storage alive at that moment: many small ones may be more together."""
    changes: list[Change]
    """Single changes that save memory, the cheapest first; empty if none saves one per cent."""

    def __str__(self) -> str:
        lines = [f"Largest at the peak of {self.name} ({self.phase})", *map(allocation_line, self.largest)]
        lines += [f"The largest tensor alone: {self._tensor}", "", "Changes that save memory, the cheapest first"]
        for change in self.changes:
            lines += [f"  {change}", f"      {' '.join(change.overrides)}"]
        return "\n".join(lines if self.changes else [*lines, "  none; fw plan searches among whole recipes"])

    @property
    def sentence(self) -> str:
        """The same in one line, for messages."""
        total = sum(self.by_category.values())
        held = ", ".join(
            f"{name.replace('_', ' ')} {format_bytes(count)}"
            for name, count in sorted(self.by_category.items(), key=lambda pair: -pair[1])
            if count > _SHARE * total
        )
        advice = "; ".join(f"{one} ({' '.join(one.overrides)})" for one in self.changes)
        return (
            f"The step takes {held}. Its largest tensor: {self._tensor}. "
            f"Cheapest changes: {advice or 'none; ask fw plan'}."
        )

    @property
    def _tensor(self) -> str:
        return " ".join(allocation_line((self.largest_tensor, 1)).split())

    def report(self) -> Report:
        """Return the tables: largest allocations, changes."""
        report = Report(f"Memory of {self.name}: {format_bytes(self.need.total_bytes)}")
        report.add_facts(
            {name.replace("_", " ") + " (GiB)": n / _GIB for name, n in self.by_category.items() if n}, "Peak"
        )
        add_largest(report, f"Largest allocations at the peak ({self.phase})", self.largest)
        add_largest(report, "The largest tensor alone", [(self.largest_tensor, 1)])
        rows = [
            [one.name, one.saved_bytes / _GIB, round(one.time_ratio, 2), one.is_exact, " ".join(one.overrides)]
            for one in self.changes
        ]
        columns = ["change", "saves (GiB)", "time (ratio)", "same numbers", "how"]
        if rows:
            report.add_table("Changes that save memory, the cheapest first", columns, rows)
        return report

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "phase": self.phase,
            "total_bytes": self.need.total_bytes,
            "by_category": dict(self.by_category),
            "largest": [allocation_dict(one) for one in self.largest],
            "largest_tensor": allocation_dict((self.largest_tensor, 1)),
            "changes": [{**vars(one), "overrides": list(one.overrides)} for one in self.changes],
        }


def why(
    recipe: RecipeSource,
    budget: str | int | None = None,
    *,
    device: str | torch.device | None = None,
    calibration: str | PathLike[str] | None = None,
    limit: int = 3,
) -> Why:
    """Say what fills the memory of a recipe at its peak, and which single changes save most for least.

    Args:
        recipe: a recipe, a mapping, or the path of a file; that of a finished run is `recipe.yaml` in its folder.
        budget: as for `fw.plan`; says which card is meant if `device` does not.
        device: as for `fw.plan`.
        calibration: as for `fw.plan`.
        limit: how many changes to return.
    Raises:
        ConfigError: if the recipe is wrong or cannot be simulated, or nobody says which device is meant.
    Cost: a simulation for each possible change, some seconds each.
    """
    return explain(load_recipe(recipe), Target.of(budget, device, calibration=calibration), limit=limit)


def explain(
    recipe: Recipe,
    target: Target,
    *,
    limit: int = 3,
    name: str = "the recipe",
    estimate: MemoryEstimate | None = None,
) -> Why:
    """Do what `why` does, for a device that is known.

    Args:
        recipe: as it is.
        target: the device.
        limit: how many changes to return.
        name: of the recipe, for headings.
        estimate: of the recipe for this kind of device, if there is one already.
    """
    present = estimate or estimate_memory(None, recipe, device=target.device)
    peak = present.timeline.peak()
    alive = present.timeline.alive_at(peak.index)
    tensor = max((one for one, _ in alive), key=lambda one: one.size_bytes)
    saving = changes(recipe, target, limit=limit, estimate=present)
    need = need_of(present, target)
    return Why(name, recipe, need, peak.phase, peak.by_category, alive[:_LARGEST], tensor, saving)


def changes(recipe: Recipe, target: Target, *, limit: int = 3, estimate: MemoryEstimate | None = None) -> list[Change]:
    """Return the changes of a recipe that save memory, the cheapest first: exact ones before others, free ones before
    others, then by what they save.

    Args:
        recipe: as it is.
        target: the device.
        limit: how many to return.
        estimate: of the recipe for this kind of device, if there is one already.
    Cost: a simulation for each possible change, some seconds each.
    """
    present = estimate or estimate_memory(None, recipe, device=target.device)
    need, seconds = need_of(present, target).total_bytes, seconds_of(present.cost, target)
    found = []
    for name, overrides, is_exact in _possible(recipe):
        try:
            changed = estimate_memory(None, recipe.override(overrides), device=target.device)
        except FeatherweightError:
            continue  # it does not go together with the rest of the recipe
        saved = need - need_of(changed, target).total_bytes
        if saved > _SHARE * present.peak_bytes:
            ratio = seconds_of(changed.cost, target) / seconds
            work = sum(changed.cost.flops.values()) / sum(present.cost.flops.values())
            is_free = max(work, ratio) < _NOTICEABLE and changed.cost.host_bytes <= present.cost.host_bytes
            found.append(Change(name, overrides, saved, ratio, is_free, is_exact))
    found.sort(key=lambda one: (not one.is_exact, not one.is_free, -one.saved_bytes))
    return found[:limit]


def _possible(recipe: Recipe) -> list[tuple[str, tuple[str, ...], bool]]:
    named = dict(zip(recipe.method_names, recipe.methods, strict=True))
    methods = recipe.build_methods()
    freezes_model = any(method.freezes_model for method in methods)
    is_checkpointed = recipe.activation_checkpointing or any(method.checkpoints_activations for method in methods)
    others = [entry for name, entry in named.items() if name != "mst"]
    optimizer = recipe.optimizer_config()
    found: list[tuple[str, tuple[str, ...], bool]] = []
    if "mst" not in named:
        found.append(("loss in chunks", (_methods([*others, {"mst": {"mlp": False}}]),), True))
        found.append(("loss and feed-forward layers in chunks", (_methods([*others, {"mst": {}}]),), True))
    given = named.get("mst")
    present: Mapping[str, Any] = (given["mst"] or {}) if isinstance(given, Mapping) else {}
    if not is_checkpointed:
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
    if optimizer.state_bits > 8 and not freezes_model:
        found.append(("8-bit moments", ("optimizer.state_bits=8",), False))
    if optimizer.name in ("adamw", "adamw_8bit") and not freezes_model:
        galore = ("optimizer=galore_8bit", "optimizer.rank=0.25", "optimizer.layerwise=true")
        found.append(("GaLore of a quarter of the rank, layer-wise", galore, False))
    return found


def _methods(entries: list[Any]) -> str:
    import json

    return f"methods={json.dumps(entries)}"
