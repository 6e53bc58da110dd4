"""`plan_ranks`: what each of several GPUs holds and sends under a recipe as it stands, and which sharding it asks for.

Weights, state and gradients follow from the layouts of the optimizer (`shares.py`), activations from the simulated step
of one process, traffic from the formulas of `featherweight.distributed.traffic`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from featherweight.distributed.placement import shares_bases
from featherweight.distributed.traffic import Sizes, copies_bytes, ddp_bytes, fsdp2_bytes
from featherweight.errors import ConfigError, FeatherweightError
from featherweight.planner.need import need_of
from featherweight.planner.shares import WIRE_BYTES, shares_of, with_shared_bases
from featherweight.planner.target import Target
from featherweight.planner.time_model import seconds_of
from featherweight.report import Report, format_bytes
from featherweight.training.estimate import MemoryEstimate, counted_over_layers, estimate_memory
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe

NODE = 8
"""GPUs of a machine."""
LINKS = {"NVLink": 350e9, "400 Gb/s for each GPU": 40e9, "100 Gb/s for 8 GPUs": 1.5e9}
"""Customary bytes per second that a GPU reaches in a collective; not measured here."""
COMMUNICATOR_BYTES = 450 * 2**20
"""What NCCL keeps, in the middle of what people report."""


@dataclass(frozen=True)
class RankRow:
    """One sharding: what the GPU with most of it holds, and what a GPU sends."""

    sharding: str
    """ddp, fsdp2 or hsdp."""
    shard_size: int
    """GPUs that share one copy."""
    bytes_by_category: Mapping[str, int]
    """weights, gathered, gradients, optimizer_state, activations, others; of the fullest GPU."""
    sent_bytes: float
    """By a GPU in an optimizer step, refreshes left out."""
    between_nodes_bytes: float | None
    """Of these between machines, where most stay inside; None if nothing tells them apart."""
    basis: str = "replicated"
    """replicated or sharded: whether each GPU has all bases or a share of them."""

    @property
    def total_bytes(self) -> int:
        """All that a GPU holds."""
        return sum(self.bytes_by_category.values())


@dataclass(frozen=True)
class RanksPlan:
    """The shardings of one recipe on so many GPUs."""

    target: Target
    recipe: Recipe
    gpus: int
    rows: list[RankRow]
    refused: Mapping[str, str]
    """Shardings that the recipe has no form for, with the reason."""
    compute_s: float
    """Arithmetic of a step, by the time model."""

    @property
    def best(self) -> RankRow | None:
        """The first that fits: whole copies, copies of a machine, one copy of all; None if none does."""
        usable = self.target.usable_bytes
        order = ["ddp", "hsdp", "fsdp2"]
        fitting = [row for row in self.rows if row.total_bytes <= usable]
        return min(fitting, key=lambda row: order.index(row.sharding), default=None)

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        usable = format_bytes(self.target.usable_bytes)
        best = self.best
        if best is None:
            least = min(self.rows, key=lambda row: row.total_bytes, default=None)
            if least is None:
                return f"No sharding has a form for this recipe: {next(iter(self.refused.values()), '')}"
            lack = format_bytes(least.total_bytes - self.target.usable_bytes)
            return (
                f"Nothing fits: {least.sharding} needs {format_bytes(least.total_bytes)} of {usable} on each of "
                f"{self.gpus} GPUs, {lack} more than there is. Take more GPUs, or fw plan for a smaller recipe."
            )
        slow = self.seconds(best, best.between_nodes_bytes or best.sent_bytes)
        link = "NVLink" if self.gpus <= NODE else "400 Gb/s for each GPU"
        hidden = "can hide" if slow[link] <= self.compute_s else "cannot hide"
        return (
            f"sharding={best.sharding}: {format_bytes(best.total_bytes)} of {usable} on the fullest of {self.gpus} "
            f"GPUs, {format_bytes(round(best.sent_bytes))} sent by each in a step; over {link} that takes "
            f"{slow[link]:.2g} s and {hidden} behind {self.compute_s:.2g} s of arithmetic."
        )

    def seconds(self, row: RankRow, sent_bytes: float | None = None) -> dict[str, float]:
        """Return how long the traffic of a step takes over each link."""
        count = row.sent_bytes if sent_bytes is None else sent_bytes
        return {name: count / rate for name, rate in LINKS.items()}

    def report(self) -> Report:
        """Return tables: bytes of a GPU by category, traffic, seconds over customary links."""
        report = Report(f"{self.gpus} x {self.target.name}")
        report.add_note(self.verdict, title="Verdict")
        gib = 2**30
        if self.rows:
            names = list(self.rows[0].bytes_by_category)
            columns = ["sharding", "GPUs of a copy", "bases", *[f"{name.replace('_', ' ')} (GiB)" for name in names]]
            table = [
                [
                    row.sharding,
                    row.shard_size,
                    row.basis,
                    *[round(row.bytes_by_category[name] / gib, 2) for name in names],
                ]
                + [round(row.total_bytes / gib, 2)]
                for row in self.rows
            ]
            report.add_table("Bytes of the fullest GPU", [*columns, "all (GiB)"], table)
            sent = [
                [row.sharding, round(row.sent_bytes / 1e9, 2), *[round(one, 3) for one in self.seconds(row).values()]]
                for row in self.rows
            ]
            links = [f"{name} (s)" for name in LINKS]
            report.add_table("Sent by a GPU in a step", ["sharding", "GB", *links], sent)
        if self.refused:
            report.add_facts(dict(self.refused), title="Has no form yet")
        report.add_note(
            "weights, state and gradients by formula, activations by simulation of one process; links by customary "
            "rates; refreshes left out; nothing of this was measured on GPUs",
            title="Assumptions",
        )
        return report

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with names that programs may rely on."""
        return {
            "verdict": self.verdict,
            "gpus": self.gpus,
            "device": self.target.name,
            "usable_bytes": self.target.usable_bytes,
            "sharding": None if self.best is None else self.best.sharding,
            "compute_s": self.compute_s,
            "rows": [
                {
                    "sharding": row.sharding,
                    "shard_size": row.shard_size,
                    "basis": row.basis,
                    "bytes": dict(row.bytes_by_category),
                    "total_bytes": row.total_bytes,
                    "sent_bytes": row.sent_bytes,
                    "between_nodes_bytes": row.between_nodes_bytes,
                    "seconds": self.seconds(row),
                }
                for row in self.rows
            ],
            "refused": dict(self.refused),
        }


def plan_ranks(
    recipe: RecipeSource,
    gpus: int,
    *,
    device: str | None = None,
    budget: str | int | None = None,
    calibration: str | PathLike[str] | None = None,
    estimate: MemoryEstimate | None = None,
) -> RanksPlan:
    """Say what each of several GPUs holds and sends under a recipe as it stands.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        gpus: number of GPUs, eight to a machine.
        device: a card such as "h100-80gb"; None takes that of this machine.
        budget: memory of a GPU to use; None takes all.
        calibration: file of a measured card.
        estimate: of one GPU with its share of the micro-batches, if it is known already; None simulates it.
    Raises:
        ConfigError: if the recipe is wrong or cannot be simulated, or has fewer micro-batches than GPUs.
    Cost: a simulation of one process, 10 to 60 s of one core.
    """
    base, target = load_recipe(recipe), Target.of(budget, device, calibration=calibration)
    if gpus < 2:
        raise ConfigError(f"plan: gpus={gpus} is out of range; expected at least 2. Leave it out for one.")
    if base.accumulation_steps < gpus:
        raise ConfigError(
            f"plan: accumulation_steps={base.accumulation_steps} is below the {gpus} GPUs, and counts the "
            f"micro-batches of one optimizer step over all of them; expected at least {gpus}. Set "
            f"accumulation_steps={gpus}."
        )
    passes = -(-base.accumulation_steps // gpus)
    of_one = base.override([f"accumulation_steps={passes}"])
    estimate = estimate_memory(None, of_one, device=target.device) if estimate is None else estimate
    kept = _kept_bytes(estimate, target)
    rows, refused = [], {}
    shardings = {"ddp": 1, **({"hsdp": NODE} if gpus > NODE and gpus % NODE == 0 else {}), "fsdp2": gpus}
    for name, shard_size in shardings.items():
        try:
            facts = counted_over_layers(of_one, lambda loop, size=shard_size: shares_of(loop, size))  # type: ignore[misc]
        except FeatherweightError as reason:
            refused[name] = str(reason)
            continue
        is_shared = shares_bases(base.sharding.basis, facts["bases"], target.budget_bytes)
        rows.append(_row(name, shard_size, gpus, passes, facts, kept, is_shared=is_shared))
    return RanksPlan(target, base, gpus, rows, refused, seconds_of(estimate.cost, target))


def _kept_bytes(estimate: MemoryEstimate, target: Target) -> dict[str, int]:
    """Return what a process holds whatever the sharding: activations and temporaries at the peak, and the rest."""
    need = need_of(estimate, target)
    by_category = estimate.peak_by_category
    sharded = sum(by_category.get(name, 0) for name in ("weights", "gradients", "optimizer_state"))
    return {
        "activations": need.allocated_bytes - sharded,
        "others": need.total_bytes - need.allocated_bytes + COMMUNICATOR_BYTES,
    }


def _row(
    name: str,
    shard_size: int,
    gpus: int,
    passes: int,
    facts: Mapping[str, int],
    kept: Mapping[str, int],
    *,
    is_shared: bool,
) -> RankRow:
    sizes = Sizes(facts["projected"], facts["cores"], facts["left_cores"], facts["others"])
    copies, between = gpus // shard_size, None
    if name == "ddp":
        sent = ddp_bytes(sizes, gpus, other_bytes=WIRE_BYTES)
    else:
        per_element = facts["weight_bytes"] / (sizes.projected + sizes.others)
        sent = fsdp2_bytes(sizes, shard_size, weight_bytes=per_element, sums_cores=sizes.cores > 0, passes=passes)
        share = (shard_size - 1) / shard_size
        sent += share * 2 * WIRE_BYTES * facts["left_sums"]
        if is_shared:
            facts = with_shared_bases(facts)
            sent += share * facts["basis_bytes_gathered"]
        if copies > 1:
            between = copies_bytes(sizes, copies, shard_size)
            sent += between
    names = ("weights", "gathered", "gradients", "optimizer_state")
    by_category = {**{key: facts[key] for key in names}, **kept}
    basis = "sharded" if is_shared and name != "ddp" else "replicated"
    return RankRow(name, shard_size, by_category, sent, between, basis)
