"""`answer`: a plan together with the questions about it, as `fw plan --solve --why` asks them."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from featherweight.errors import ConfigError
from featherweight.planner.advice import Why, explain
from featherweight.planner.host import HostNeed, host_limit, host_need, require_host
from featherweight.planner.layered import layered_rows
from featherweight.planner.need import expandable_need_of, need_of
from featherweight.planner.plan import Plan, base_recipe, plan
from featherweight.planner.row import PlanRow
from featherweight.planner.solve import Solution, check_unknown, solve
from featherweight.planner.target import Target
from featherweight.planner.time_model import seconds_of
from featherweight.report import format_bytes
from featherweight.training.estimate import estimate_memory
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe

_MUCH = 1.1
"""Segments over tensors from which on a plan says what other settings of the allocator would save."""


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
    if host_memory is not None:
        base = _base_by_layers(model, recipe, host_memory, options)
        if model is None:
            return _answer_by_layers(base, budget, device, unknown, host_memory)
        return _plan_by_layers(base, budget, device, unknown, host_memory, options)
    found = plan(model, budget, recipe=recipe, device=device, **options)
    tell = options.get("on_progress") or (lambda _: None)
    asked = load_recipe(recipe) if recipe is not None and model is None else None
    row = found.rows[0] if found.rows else found.nearest
    about = asked or (None if row is None else row.recipe)
    solution = unsolvable = reasons = None
    if unknown is not None and about is not None:
        tell(f"what {unknown} fits")
        try:
            solution = solve(unknown, None, about, budget, device=device)  # type: ignore[arg-type]
        except ConfigError as reason:
            if found.rows:
                raise
            unsolvable = str(reason)
    if why and about is not None:
        tell("single changes")
        reasons = found.why() if asked is None else explain(asked, found.target, name="the recipe as it stands")
    return Answers(found, solution, unsolvable, reasons)


def _base_by_layers(
    model: Any, recipe: RecipeSource | None, host_memory: str | int, options: Mapping[str, Any]
) -> Recipe:
    """Return the recipe that a second budget asks about, or what the candidates for a model share.

    Raises:
        ConfigError: for a recipe alone whose steps do not go layer by layer.
    """
    if model is not None:
        return base_recipe(model, recipe, options.get("seq_len"), options.get("tokens_per_step"))
    asked = None if recipe is None else load_recipe(recipe)
    if asked is None or asked.schedule.order != "layer":
        found = "no recipe" if asked is None else f"schedule.order={asked.schedule.order}"
        raise ConfigError(
            f"plan: host-memory={host_memory} with {found}; expected a model, or a recipe whose steps go layer by "
            "layer, as only these keep anything on the host. Set schedule.order=layer, inputs=host and weights=host "
            "in it, or name a model."
        )
    return asked


def _plan_by_layers(
    base: Recipe,
    budget: str | int | None,
    device: str | torch.device | None,
    unknown: str | None,
    host_memory: str | int,
    options: Mapping[str, Any],
) -> Answers:
    """Search for recipes whose steps go layer by layer, and solve for a setting of the best one, under both budgets."""
    started, limit = time.monotonic(), host_limit(host_memory)
    target = Target.of(budget, device, calibration=options.get("calibration"))
    tell = options.get("on_progress") or (lambda _: None)
    exclude, most = options.get("exclude", ()), options.get("limit")
    rows, refused, nearest = layered_rows(base, target, limit, exclude=exclude, limit=most, tell=tell)
    solution = unsolvable = None
    if unknown is not None and rows:
        tell(f"what {unknown} fits")
        recipe = rows[0].recipe
        solution = solve(unknown, None, recipe, budget, device=device, host_memory=host_memory)  # type: ignore[arg-type]
    elif unknown is not None:
        unsolvable = f"{unknown}: no recipe fits {format_bytes(target.budget_bytes)} and the host."
    shown = rows[0] if rows else nearest
    lines = [] if shown is None else _host_lines(shown, target)
    found = Plan(target, rows, refused, lines, time.monotonic() - started, nearest)
    return Answers(found, solution, unsolvable, host=None if shown is None else shown.host)


def _answer_by_layers(
    recipe: Recipe,
    budget: str | int | None,
    device: str | torch.device | None,
    unknown: str | None,
    host_memory: str | int | None,
) -> Answers:
    """Judge a recipe as it stands by two budgets, or solve for its longest row, rank or batch under both."""
    started, target = time.monotonic(), Target.of(budget, device)
    solution = None
    if unknown is not None:
        solution = solve(unknown, None, recipe, budget, device=device, host_memory=host_memory)  # type: ignore[arg-type]
        recipe = solution.recipe
    host = require_host(recipe, host_memory) or host_need(recipe)
    estimate = estimate_memory(None, recipe, device=target.device)
    speed = estimate.tokens_per_step / seconds_of(estimate.cost, target)
    need = need_of(estimate, target)
    row = PlanRow("the recipe as it stands", "layer by layer", (), recipe, estimate, need, speed, host)
    fits = need.fits(target)
    refused = (
        {} if fits else {row.family: f"needs {need.total_bytes / 2**30:.2f} GiB of {target.usable_bytes / 2**30:.2f}"}
    )
    seconds = time.monotonic() - started
    found = Plan(target, [row] if fits else [], refused, _host_lines(row, target), seconds, None if fits else row)
    return Answers(found, solution, host=host)


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
