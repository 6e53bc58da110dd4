"""The outcome of a run in numbers, and the reports that show it: of one run, and of several side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from featherweight.config import write_atomically
from featherweight.errors import CheckpointError
from featherweight.report import Report
from featherweight.training.footprint import CATEGORIES, Footprint
from featherweight.training.metrics import curve, smooth, to_json
from featherweight.training.task import Words


@dataclass(frozen=True)
class Summary:
    """What came out of a run."""

    optimizer: dict[str, Any]
    """Complete options, `name` among them."""
    steps: int
    """Optimizer steps."""
    items: int
    """Items trained on, which `words.items` names: tokens, samples, ..."""
    training_loss: float | None
    """Mean over the last tenth of the steps, per item."""
    held_out: dict[str, float | None]
    """The task's metrics after the last step; null if not finite."""
    before_training: dict[str, float | None]
    """The same before the first step; empty if not measured."""
    items_per_s: float | None
    """Speed of the training steps, in the same items; None if too few were made."""
    skipped_steps: int
    """Parameters left out of a step because their gradient was not finite."""
    task: dict[str, Any]
    """Names and counts of the data and the model."""
    footprint: Footprint = field(default_factory=Footprint)
    """Memory, predicted and measured."""
    words: Words = field(default_factory=Words)
    """What the task counts and measures."""
    best_step: int | None = None
    """Step whose weights are those of the model, with `save_best`; None: the last one."""
    best: dict[str, float | None] = field(default_factory=dict)
    """The task's metrics after that step."""
    ended_early: str = ""
    """Why the run ended before its last step; empty if it did not."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they stand in summary.json."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write the summary as JSON."""
        write_atomically(path, f"{json.dumps(self.to_dict(), indent=2, default=str)}\n")

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is no summary.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for old in ("tokens", "tokens_per_s"):  # older summaries say tokens whatever their task counts
                if old in content:
                    content[old.replace("tokens", "items")] = content.pop(old)
            words = Words(**content.get("words", {}))
            words = replace(words, metrics=tuple(words.metrics))  # JSON knows lists alone
            return cls(**{**content, "footprint": Footprint(**content["footprint"]), "words": words})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"run: summary={path} cannot be read ({error}); expected the file of a finished run. Delete it to "
                "train again."
            ) from error


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return the metrics with None in place of NaN and infinity."""
    return {name: to_json(value) for name, value in metrics.items()}


Lines = Sequence[Mapping[str, Any]]
"""The lines of a metrics file."""


def run_report(title: str, summary: Summary, lines: Lines, machine: str) -> Report:
    """Return the report of one run.

    Args:
        title: its name.
        summary: its outcome.
        lines: its metrics file.
        machine: what it ran on, in a few words.
    """
    report = Report(title)
    names = list(dict.fromkeys([*summary.before_training, *summary.held_out]))
    before, after = ([metrics.get(name) for name in names] for metrics in (summary.before_training, summary.held_out))
    rows = [["before training", None, *before], ["after training", summary.training_loss, *after]]
    if summary.best_step is not None:
        rows.append([f"best, after step {summary.best_step}", None, *map(summary.best.get, names)])
    report.add_table("Result", ["weights", "training loss", *map(metric_words, names)], rows)
    if summary.best_step is not None:
        report.add_note(f"The model of this run has the weights after step {summary.best_step}.", title="Best")
    if summary.ended_early:
        report.add_note(summary.ended_early, title="Ended early")
    _add_memory(report, {summary.optimizer["name"]: summary.footprint})
    _add_curves(report, {summary.optimizer["name"]: lines}, {}, summary.words)
    report.add_facts(
        {
            **summary.task,
            "optimizer": ", ".join(f"{name}={value}" for name, value in summary.optimizer.items()),
            "steps": summary.steps,
            summary.words.items: summary.items,
            f"{summary.words.items}/s": summary.items_per_s,
            "machine": machine,
        },
        title="Run",
    )
    _add_skipped(report, {summary.optimizer["name"]: summary})
    return report


def comparison_report(title: str, runs: Mapping[str, tuple[Summary, Lines]], machine: str) -> Report:
    """Return the report of several runs of one recipe that differ in the optimizer alone.

    Args:
        title: heading.
        runs: method -> its outcome and its metrics file; at least one.
        machine: what they ran on, in a few words.
    """
    report = Report(title)
    summaries = {method: summary for method, (summary, _) in runs.items()}
    first = next(iter(summaries.values()))
    words = first.words
    before = next((one.before_training for one in summaries.values() if one.before_training), {})
    unit, divisor = _unit([one.footprint for one in summaries.values()])
    names = ("held_out_loss", *words.metrics)
    columns = ["method", "training loss", *map(metric_words, names)]
    columns += [f"{_words(category)} ({unit})" for category in CATEGORIES] + [f"peak ({unit})", f"{words.items}/s"]
    rows: list[list[Any]] = []
    if before:
        losses = [None, *map(before.get, names)]
        rows.append(["before training", *losses, *[None] * (len(columns) - len(losses) - 1)])
    decimals = {name: _decimals([one.footprint for one in summaries.values()], name, divisor) for name in CATEGORIES}
    for method, one in summaries.items():
        footprint = one.footprint
        row: list[Any] = [method, one.training_loss, *map(one.held_out.get, names)]
        row += [_predicted_and_measured(footprint, name, divisor, decimals[name]) for name in CATEGORIES]
        peak = _share({"all": footprint.peak_bytes}, "all", divisor) if footprint.measured else None
        rows.append([*row, peak, one.items_per_s])
    report.add_table("Methods", columns, rows)
    report.add_note(
        "Memory: predicted / measured; activations are only measured. Each category shows its own largest value; "
        "they are reached at different moments, so they do not add up to the peak, and gradients may not exist yet "
        "when it is reached. "
        "Training loss: mean over the last tenth of the steps.",
        title="How to read the table",
    )
    _add_curves(report, {method: lines for method, (_, lines) in runs.items()}, before, words)
    _add_bars(report, {method: one.footprint for method, one in summaries.items()}, unit, divisor)
    report.add_facts({**first.task, "steps": first.steps, words.items: first.items, "machine": machine}, title="Run")
    options = {method: ", ".join(f"{k}={v}" for k, v in one.optimizer.items()) for method, one in summaries.items()}
    report.add_facts(options, title="Optimizers")
    _add_skipped(report, summaries)
    return report


def memory_report(title: str, method: str, footprint: Footprint) -> Report:
    """Return the report of a measurement: predicted and measured bytes by category."""
    report = Report(title)
    _add_memory(report, {method: footprint})
    return report


def _add_memory(report: Report, footprints: Mapping[str, Footprint]) -> None:
    unit, divisor = _unit(footprints.values())
    rows: list[list[Any]] = []
    for footprint in footprints.values():
        for name in _categories(footprint.measured or footprint.predicted):
            predicted, measured = (_share(part, name, divisor) for part in (footprint.predicted, footprint.measured))
            rows.append([_words(name), predicted, measured, _share(footprint.at_peak, name, divisor)])
        peak = _share({"all": footprint.peak_bytes}, "all", divisor) if footprint.measured else None
        planned = footprint.predicted_peak_bytes
        predicted_peak = _share({"all": planned}, "all", divisor) if planned else None
        rows.append(["peak", predicted_peak, None, peak])
    columns = ["category", f"predicted ({unit})", f"measured maximum ({unit})", f"measured at the peak ({unit})"]
    report.add_table("Memory", columns, rows)
    _add_bars(report, footprints, unit, divisor)


def _add_bars(report: Report, footprints: Mapping[str, Footprint], unit: str, divisor: int) -> None:
    bars = {
        method: {
            _words(name): share
            for name in _categories(footprint.at_peak)
            if (share := _share(footprint.at_peak, name, divisor))
        }
        for method, footprint in footprints.items()
        if footprint.at_peak
    }
    if bars:
        report.add_bars("Memory at the peak of a step", f"memory ({unit})", bars)


def _add_curves(report: Report, runs: Mapping[str, Lines], before: Mapping[str, Any], words: Words) -> None:
    training, held_out = {}, {}
    for name, lines in runs.items():
        xs, ys = curve(lines, "step", "loss", items=words.count_key)
        training[name] = (xs, smooth(ys))
        xs, ys = curve(lines, "evaluate", "held_out_loss", items=words.count_key)
        if before.get("held_out_loss") is not None and 0.0 not in xs:
            # All methods start from the same model, which is evaluated once.
            xs, ys = [0.0, *xs], [before["held_out_loss"], *ys]
        held_out[name] = (xs, ys)
    axes = (words.items, f"loss ({words.loss})")
    report.add_curves("Training loss (running mean over a twentieth of the steps)", *axes, training)
    report.add_curves("Held-out loss", *axes, held_out)


def _add_skipped(report: Report, summaries: Mapping[str, Summary]) -> None:
    for name, summary in summaries.items():
        if summary.skipped_steps:
            report.add_note(
                f"{name} left out {summary.skipped_steps} updates of single parameters because their gradient was "
                "not finite. "
                "A lower learning rate or fp32 may help.",
                title="Gradients that were not finite",
            )


def _categories(measured: Mapping[str, int]) -> list[str]:
    """Return the categories of the tables first, then whatever else was measured."""
    return [*CATEGORIES, *(name for name, count in measured.items() if name not in CATEGORIES and count)]


def metric_words(name: str) -> str:
    """Return the words for a metric of the held-out split."""
    words = {"held_out_loss": "held-out loss", "tokens": "held-out tokens"}
    return words.get(name, name.replace("_", " "))


def _words(category: str) -> str:
    return category.replace("_", " ")


def _share(counts: Mapping[str, int], name: str, divisor: int) -> float | None:
    """Return the count in the report's unit, in the digits that a reader needs; summary.json has the bytes."""
    return round(counts[name] / divisor, 3 if divisor == 2**30 else 2) if name in counts else None


def _figures(footprint: Footprint, category: str, divisor: int) -> list[float]:
    """Return what was predicted and measured of a category, as far as it is known."""
    figures = (_share(part, category, divisor) for part in (footprint.predicted, footprint.measured))
    return [figure for figure in figures if figure is not None]


def _decimals(footprints: Sequence[Footprint], category: str, divisor: int) -> int:
    """Return the decimals that all figures of a category share."""
    figures = [figure for one in footprints for figure in _figures(one, category, divisor)]
    return 0 if figures and min(filter(None, figures), default=0) >= 10 else 1


def _predicted_and_measured(footprint: Footprint, category: str, divisor: int, decimals: int) -> str | None:
    """Return both figures of a category as one cell."""
    return " / ".join(f"{figure:,.{decimals}f}" for figure in _figures(footprint, category, divisor)) or None


def _unit(footprints: Any) -> tuple[str, int]:
    """Return one unit for all figures of a report: KiB below 1 MiB, MiB up to 10 GiB, then GiB."""
    largest = max([max(one.peak_bytes, sum(one.predicted.values())) for one in footprints], default=0)
    if largest >= 10 * 2**30:
        return "GiB", 2**30
    return ("MiB", 2**20) if largest >= 2**20 else ("KiB", 2**10)
