"""`plan`: the recipes that fit a budget, the most faithful first, each with the fastest way to keep activations.

A way of keeping activations costs about the same bytes whatever the optimizer is. So one family is simulated with all
of them; for the others the weights, state and gradients by formula say which one should fit, and that one is simulated.
What is shown as fitting was simulated; what is refused may be refused by the formula.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from featherweight import __version__
from featherweight.config import write_atomically
from featherweight.errors import ConfigError, FeatherweightError
from featherweight.planner.advice import Why, explain
from featherweight.planner.candidates import (
    ACTIVATION_STRATEGIES,
    FAMILIES,
    ActivationStrategy,
    Family,
    families_without,
    family_called,
    recipe_of,
)
from featherweight.planner.need import need_of
from featherweight.planner.operators import operator_rows
from featherweight.planner.recipe_text import recipe_text
from featherweight.planner.report import add_best, add_rows
from featherweight.planner.row import PlanRow
from featherweight.planner.target import Target
from featherweight.planner.time_model import seconds_of
from featherweight.report import Report, format_bytes
from featherweight.training.estimate import (
    estimate_memory,
    formula_bytes,
    skeleton_of,
    with_model,
)
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe

_GIB = 2**30
_REFERENCE = next(family for family in FAMILIES if family.name.startswith("LoRA"))
_USUAL_LENGTH = 1024
"""Tokens of a row where nobody says how many."""
_GAIN = 1.02
"""A larger micro-batch must be so much faster to be worth its memory."""
_DOUBLINGS = 2
"""Micro-batches beyond four rows are not tried: a row of text is enough to keep a GPU busy."""
_ALIKE = 0.05
"""Share by which the time model cannot tell two ways apart."""


@dataclass(frozen=True)
class Plan:
    """What fits, what does not and why."""

    target: Target
    """For which device."""
    rows: list[PlanRow]
    """Recipes that fit, from the most faithful to the smallest."""
    refused: Mapping[str, str]
    """Families that do not fit or cannot be simulated, each with the reason."""
    assumptions: list[str] = field(default_factory=list)
    """What the figures rest on."""
    seconds: float = 0.0
    """How long the search took."""
    nearest: PlanRow | None = None
    """Where nothing fits, the recipe that lacks least; it was simulated too."""

    @property
    def best(self) -> PlanRow:
        """The most faithful recipe that fits.

        Raises:
            ConfigError: if nothing fits.
        """
        if not self.rows:
            last = list(self.refused)[-1] if self.refused else "no recipe"
            name = self.nearest.family if self.nearest is not None else last
            reason = self.refused.get(name, "all are excluded")
            raise ConfigError(
                f"plan: budget={format_bytes(self.target.budget_bytes)} holds no recipe ({name} {reason}); expected a "
                "larger budget, a shorter sequence or a smaller model. Lower seq_len, or exclude less."
            )
        return self.rows[0]

    @property
    def fastest(self) -> PlanRow:
        """The recipe with most tokens per second."""
        return max([self.best, *self.rows], key=lambda row: row.tokens_per_s)

    def why(self, limit: int = 3) -> Why:
        """Say what fills the memory of the best recipe, or of the nearest where none fits, and what to change.

        Raises:
            ConfigError: if nothing could be simulated.
        Cost: a simulation for each possible change, some seconds each.
        """
        row = self.nearest if self.nearest is not None and not self.rows else self.best
        return explain(row.recipe, self.target, limit=limit, name=row.family, estimate=row.estimate)

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        budget = format_bytes(self.target.budget_bytes)
        if not self.rows:
            return f"Nothing fits {budget}. {self._miss}Shorten the sequence, take a smaller model, or allow more."
        best = self.rows[0]
        need = best.need
        rows = best.recipe.micro_batch_size
        free = 1 - need.total_bytes / self.target.budget_bytes
        return (
            f"Fits: {format_bytes(need.total_bytes)} of {budget} (between {format_bytes(need.low_bytes)} and "
            f"{format_bytes(need.high_bytes)}), {free:.0%} left free, with {best.family}, activations: {best.keeping}, "
            f"{rows} row{'s' * (rows > 1)} at once. "
            f"Gives up: {', '.join(best.tags) or 'nothing'}."
        )

    @property
    def _miss(self) -> str:
        if (row := self.nearest) is None:
            return ""
        usable, needed = self.target.usable_bytes, row.need.total_bytes
        return (
            f"Nearest: {row.family}, activations: {row.keeping}, needs {format_bytes(needed)}, "
            f"{format_bytes(needed - usable)} more than the {format_bytes(usable)} that the margin leaves. "
        )

    def report(self) -> Report:
        """Return the plan for people: verdict, recipes, memory by category, largest allocations, assumptions."""
        report = Report(f"Plan for {self.target.name}, {self.target.budget_bytes / _GIB:.1f} GiB")
        report.add_note(self.verdict, title="Verdict")
        if self.rows:
            add_rows(report, self.rows, self.target.budget_bytes)
            add_best(report, self.rows[0], self.seconds)
        if self.refused:
            report.add_facts(dict(self.refused), title="Does not fit")
        report.add_note("; ".join(self.assumptions), title="Assumptions")
        return report

    def save_recipe(self, path: str | PathLike[str], comments: Sequence[str] = ()) -> None:
        """Write the best recipe as YAML with comments, or as JSON.

        Args:
            path: of the file.
            comments: lines for the top of a YAML file.
        Raises:
            ConfigError: if nothing fits, or the file cannot be written.
        """
        if Path(path).suffix not in (".yaml", ".yml"):
            self.best.recipe.to_file(path)
            return
        head = [*comments, f"Planned for {self.target.name}, {format_bytes(self.target.budget_bytes)}. {self.verdict}"]
        write_atomically(path, recipe_text(self.best, head))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with the names that programs may rely on: the best recipe's figures, then the others."""
        return {
            "verdict": "fits" if self.rows else "does not fit",
            "device": self.target.name,
            "budget_bytes": self.target.budget_bytes,
            "usable_bytes": self.target.usable_bytes,
            **(self.rows[0].to_dict() if self.rows else {}),
            **({"nearest": self.nearest.to_dict()} if self.nearest is not None else {}),
            "alternatives": [row.to_dict() for row in self.rows[1:]],
            "refused": dict(self.refused),
            "assumptions": self.assumptions,
            "versions": {"featherweight": __version__, "torch": torch.__version__},
            "seconds": round(self.seconds, 1),
        }


def plan(
    model: Any,
    budget: str | int | None = None,
    *,
    seq_len: int | None = None,
    tokens_per_step: int | None = None,
    device: str | torch.device | None = None,
    exclude: Collection[str] = (),
    limit: int | None = None,
    recipe: RecipeSource | None = None,
    calibration: str | PathLike[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Plan:
    """Search for recipes that fit a budget.

    Args:
        model: a name, folder or configuration as recipes know them, a transformers configuration, or a model (only its
            configuration counts); None takes the recipe's.
        budget: memory that the process may take, in bytes or as text such as "12GB"; None takes all of the device.
        seq_len: tokens of a row; None takes the recipe's, or 1024 where the model reads that many.
        tokens_per_step: tokens of one optimizer step, reached by accumulation; None takes the recipe's batch, or one
            row.
        device: a card ("rtx4090"), "cuda", "cpu"; None takes that of this machine, or a common card of the budget's
            size.
        exclude: tags of what must not be given up; see `TAGS`.
        limit: stop once so many recipes fit, the most faithful ones; None tries all.
        recipe: gives task, steps and schedule; None a short run on the English corpus. One whose task has no rows of
            some length (pde, bev) is planned as it stands, under the optimizers of its `compare`, too.
        calibration: file of a measured card; None takes the user's own, or defaults that say so.
        on_progress: told what is being simulated.
    Returns:
        The plan; its `best` is a complete recipe.
    Raises:
        ConfigError: if an argument is wrong or the model cannot be simulated.
    Cost: 20 to 60 s of one core, less than 2 GB of host memory, no weights.
    """
    started = time.monotonic()
    families_without(exclude)  # a wrong tag is answered before anything is read
    target = Target.of(budget, device, calibration=calibration)
    families = families_without(exclude, on_cpu=target.kind == "cpu")
    if model is None and recipe is not None and seq_len is tokens_per_step is None:
        given = load_recipe(recipe)
        if given.task_class.length_key is None:
            tell = on_progress or (lambda _: None)
            fitting, misfits, lacking = operator_rows(given, target, limit=limit, tell=tell)
            lines = _assumptions(target, fitting or ([] if lacking is None else [lacking]))
            return Plan(target, fitting, misfits, lines, time.monotonic() - started, lacking)
    base = base_recipe(model, recipe, seq_len, tokens_per_step)
    search = _Search(base, target, on_progress or (lambda _: None))
    rows: list[PlanRow] = []
    refused: dict[str, str] = {}
    misses: list[_DoesNotFit] = []
    for choices in families:
        if len(rows) == limit:
            break
        for family in choices:
            try:
                rows.append(search.fastest_fit(family))
                break
            except _DoesNotFit as miss:
                refused[family.name] = str(miss)
                misses.append(miss)
            except FeatherweightError as error:
                refused[family.name] = str(error)
    if rows:
        rows[0] = search.with_larger_micro_batch(rows[0])
    nearest = None if rows else search.nearest(misses)
    shown = rows or ([] if nearest is None else [nearest])
    return Plan(target, rows, refused, _assumptions(target, shown), time.monotonic() - started, nearest)


def base_recipe(
    model: Any, recipe: RecipeSource | None, seq_len: int | None = None, tokens_per_step: int | None = None
) -> Recipe:
    """Return the recipe that all candidates share: data, steps, sequence length and tokens of a step."""
    if tokens_per_step is not None and tokens_per_step < 1:
        raise ConfigError(
            f"plan: tokens_per_step={tokens_per_step} is out of range; expected >= 1. Leave it out for one row."
        )
    if recipe is None:
        if model is None:
            raise ConfigError("plan: model=None and recipe=None; expected one of them. Name a model such as llama-7b.")
        task = {"name": "text", "model": "tiny", "corpus": "english", "seq_len": 2}
        base = with_model(Recipe.parse({"task": task, "steps": 1000, "micro_batch_size": 1}, where="recipe"), model)
        if seq_len is None:
            seq_len = min(_USUAL_LENGTH, skeleton_of(base).longest or _USUAL_LENGTH)
    else:
        base = with_model(load_recipe(recipe), model)
    key = base.length_key()
    if seq_len is not None:
        base = base.override([f"{key}={seq_len}"])
    rows = base.micro_batch_size * base.accumulation_steps
    if tokens_per_step is not None:
        length = getattr(base.task_config(), key.removeprefix("task."))
        rows = max(1, round(tokens_per_step / length))
    return base.override(["micro_batch_size=1", f"accumulation_steps={rows}"])


class _DoesNotFit(Exception):
    """No way of keeping activations brings a family within the budget."""

    def __init__(self, reason: str, needed_bytes: int, family: Family, strategy: ActivationStrategy) -> None:
        super().__init__(reason)
        self.needed_bytes, self.family, self.strategy = needed_bytes, family, strategy


class _Search:
    """Simulates what a plan asks for, each recipe once."""

    def __init__(self, base: Recipe, target: Target, tell: Callable[[str], None]) -> None:
        self.base = base
        self.target = target
        self.tell = tell
        self.is_pretrained = base.task_class.is_pretrained(base.task_config())
        self._rows: dict[tuple[str, str], PlanRow] = {}
        self._ways: list[tuple[ActivationStrategy, int, float]] | None = None

    def row(self, family: Family, strategy: ActivationStrategy, base: Recipe | None = None) -> PlanRow:
        """Simulate one recipe."""
        key = (family.name, strategy.name)
        if base is None and key in self._rows:
            return self._rows[key]
        recipe = recipe_of(base or self.base, family, strategy, is_pretrained=self.is_pretrained)
        self.tell(f"{family.name}, {strategy.name}, {recipe.micro_batch_size} x {recipe.accumulation_steps}")
        row = row_of(family, strategy, recipe, self.target)
        if base is None:
            self._rows[key] = row
        return row

    def ways(self) -> list[tuple[ActivationStrategy, int, float]]:
        """Return the ways of keeping activations, the fastest first, with the bytes and the seconds a token of each."""
        if self._ways is None:
            found = []
            failed: FeatherweightError | None = None
            for strategy in ACTIVATION_STRATEGIES:
                try:
                    row = self.row(_REFERENCE, strategy)
                except FeatherweightError as error:
                    failed = error
                    continue
                fixed = formula_bytes(row.recipe)
                held = row.need.total_bytes - fixed["weights"] - fixed["optimizer_state"]
                found.append((strategy, held, 1 / row.tokens_per_s))
            if not found:
                assert failed is not None
                raise failed
            # Within a few per cent the order is that of the list, the simplest way first.
            self._ways = sorted(found, key=lambda way: round(way[2] / found[0][2] / _ALIKE))
        return self._ways

    def fastest_fit(self, family: Family) -> PlanRow:
        """Return the row of the fastest way that fits.

        Raises:
            _DoesNotFit: if none does.
        """
        first = recipe_of(self.base, family, ACTIVATION_STRATEGIES[0], is_pretrained=self.is_pretrained)
        if self.base.task.get("weights") == "random":
            first.check_weights()  # what cannot train them is not proposed
        fixed = formula_bytes(first)
        needed: list[tuple[int, ActivationStrategy]] = []
        unexpected = 0  # what the tries took beyond the formula: temporaries of the optimizer, above all
        for strategy, held_bytes, _ in self.ways():
            expected = fixed["weights"] + fixed["optimizer_state"] + max(fixed["gradients"], held_bytes)
            if expected + unexpected > self.target.usable_bytes * (1 + _ALIKE if not needed else 1):
                needed.append((expected + unexpected, strategy))
                continue
            row = self.row(family, strategy)
            if row.need.fits(self.target):
                return row
            needed.append((row.need.total_bytes, strategy))
            unexpected = row.need.total_bytes - expected
        least, leanest = min(needed, key=lambda one: one[0])
        reason = (
            f"needs about {format_bytes(least)} of {format_bytes(self.target.usable_bytes)} (weights "
            f"{format_bytes(fixed['weights'])}, gradients {format_bytes(fixed['gradients'])}, state "
            f"{format_bytes(fixed['optimizer_state'])})"
        )
        raise _DoesNotFit(reason, least, family, leanest)

    def nearest(self, misses: list[_DoesNotFit]) -> PlanRow | None:
        """Return the row of the miss that lacks least; None if that cannot be simulated."""
        for miss in sorted(misses, key=lambda one: one.needed_bytes):
            with suppress(FeatherweightError):
                return self.row(miss.family, miss.strategy)
        return None

    def with_larger_micro_batch(self, row: PlanRow) -> PlanRow:
        """Return the row with twice the micro-batch as long as that fits and is faster."""
        family = family_called(row.family)
        strategy = next(one for one in ACTIVATION_STRATEGIES if one.name == row.keeping)
        for _ in range(_DOUBLINGS):
            if row.recipe.accumulation_steps % 2:
                break
            sizes = (2 * row.recipe.micro_batch_size, row.recipe.accumulation_steps // 2)
            larger = self.base.override([f"micro_batch_size={sizes[0]}", f"accumulation_steps={sizes[1]}"])
            candidate = self.row(family, strategy, larger)
            if not candidate.need.fits(self.target) or candidate.tokens_per_s < _GAIN * row.tokens_per_s:
                break
            row = candidate
        return row


def row_of(family: Family, strategy: ActivationStrategy, recipe: Recipe, target: Target) -> PlanRow:
    """Simulate a recipe and return its row."""
    estimate = estimate_memory(None, recipe, device=target.device)
    speed = estimate.tokens_per_step / seconds_of(estimate.cost, target)
    return PlanRow(family.name, strategy.name, family.tags, recipe, estimate, need_of(estimate, target), speed)


def _assumptions(target: Target, rows: list[PlanRow]) -> list[str]:
    lines = [f"margin of {target.margin:.0%} of the budget is left free"]
    if target.calibration is None:
        lines.append("CPU: time by customary rates, good for the order of the rows alone")
        lines.append("CPU: moments of 16 bits where they fit: the update in 8 bits takes twice the time")
    else:
        lines += [target.calibration.statement, "fw plan --calibrate measures this machine's GPU"]
        if target.is_assumed:
            lines.append(f"no card was named: times are those of a {target.name}")
        lines.append("attention by flash kernels where they exist; nothing else runs on the card")
    lines.append("tokens/s rank the rows; they are no promise")
    lines.append("learning rates are starting points; tune them")
    if any(not row.estimate.is_whole for row in rows):
        lines.append("layers are equal: few were simulated, the rest follows exactly")
    return lines
