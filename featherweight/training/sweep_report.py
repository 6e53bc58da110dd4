"""The report of a sweep: settings with mean and spread over their seeds, curves of the means, every point."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from featherweight.report import Report
from featherweight.training.grid import SEED, Point
from featherweight.training.row import Outcome
from featherweight.training.summary import Summary, metric_words
from featherweight.training.task import Words

SETTINGS, POINTS, HELD_OUT = "Settings", "Points", "Held-out loss, mean over the seeds"


def sweep_report(
    title: str, points: Sequence[Point], outcomes: Mapping[str, Outcome | Exception], machine: str
) -> Report:
    """Return the report of what is done so far.

    Args:
        title: heading.
        points: of the whole sweep.
        outcomes: of those that were tried, by name.
        machine: what they ran on, in a few words.
    """
    report = Report(title)
    done = {name: one for name, one in outcomes.items() if not isinstance(one, Exception)}
    settings: dict[str, list[Point]] = {}
    for point in points:
        settings.setdefault(point.setting, []).append(point)
    axes = [key for key in points[0].values if key != SEED]
    words = next((summary.words for summary, _ in done.values()), Words("samples", "loss/sample", ()))
    names = ["held_out_loss", *words.metrics]
    means: dict[str, tuple[float | None, float | None]] = {}
    rows: list[list[Any]] = []
    for setting, members in settings.items():
        summaries = [done[point.name][0] for point in members if point.name in done]
        cells = [_mean_and_spread([one.held_out.get(name) for one in summaries]) for name in names]
        means[setting] = cells[0]
        training = _mean_and_spread([one.training_loss for one in summaries])[0]
        speed = _mean_and_spread([one.items_per_s for one in summaries])[0]
        peaks = [one.footprint.peak_bytes for one in summaries if one.footprint.measured]
        row: list[Any] = [_cell(members[0].values[axis]) for axis in axes] or [setting]
        row += [f"{len(summaries)} of {len(members)}", training]
        row += [value for pair in cells for value in pair]
        rows.append([*row, round(max(peaks) / 2**20, 2) if peaks else None, speed])
    columns = [*(axes or ["setting"]), "runs", "training loss"]
    for name in names:
        columns += [metric_words(name), f"± {metric_words(name)}"]
    report.add_table(SETTINGS, [*columns, "peak (MiB)", f"{words.items}/s"], rows)
    report.add_note(_reading(means, {setting: len(members) for setting, members in settings.items()}), title="Reading")
    curves = {
        setting: _mean_curve([done[one.name] for one in members if one.name in done])
        for setting, members in settings.items()
    }
    curves = {setting: curve for setting, curve in curves.items() if curve[0]}
    if curves:
        report.add_curves(HELD_OUT, "steps", f"loss ({words.loss})", curves)
    _add_points(report, points, outcomes, names)
    if done:
        first: Summary = next(iter(done.values()))[0]
        report.add_facts({**first.task, "machine": machine}, title="Run")
    return report


def _add_points(
    report: Report, points: Sequence[Point], outcomes: Mapping[str, Outcome | Exception], names: Sequence[str]
) -> None:
    keys = list(points[0].values)
    rows: list[list[Any]] = []
    for point in points:
        outcome = outcomes.get(point.name)
        row: list[Any] = [point.name, *[_cell(value) for value in point.values.values()]]
        if isinstance(outcome, Exception):
            rows.append([*row, "failed", None, None, *[None] * len(names), _reason(outcome)])
        elif outcome is None:
            rows.append([*row, "waits", None, None, *[None] * len(names), None])
        else:
            summary = outcome[0]
            values = [summary.held_out.get(name) for name in names]
            state = "ended early" if summary.ended_early else "done"
            rows.append([*row, state, summary.steps, summary.training_loss, *values, None])
    columns = ["point", *keys, "state", "steps", "training loss", *map(metric_words, names), "reason"]
    report.add_table(POINTS, columns, rows)


def _mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean, and the sample standard deviation, which needs two values; None where there is none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None, None
    return fmean(known), stdev(known) if len(known) > 1 else None


def _mean_curve(outcomes: Sequence[Outcome]) -> tuple[list[int], list[float]]:
    """Return steps and mean held-out losses, at the steps that all runs of a setting have evaluated."""
    found = [
        {
            line["step"]: line["held_out_loss"]
            for line in lines
            if line["event"] == "evaluate" and line.get("held_out_loss") is not None
        }
        for _, lines in outcomes
    ]
    if not found:
        return [], []
    steps = sorted(set.intersection(*map(set, found)))
    return steps, [fmean(one[step] for one in found) for step in steps]


def _reading(means: Mapping[str, tuple[float | None, float | None]], sizes: Mapping[str, int]) -> str:
    text = "Mean over the runs of a setting that are done; ± is their sample standard deviation, which needs two."
    ranked = sorted((pair[0], setting, pair[1]) for setting, pair in means.items() if pair[0] is not None)
    if len(ranked) < 2:
        return text
    (low, best, spread), (second, other, other_spread) = ranked[:2]
    text += f" Lowest held-out loss: {best}, {low:.4g}; next: {other}, {second:.4g}."
    if spread is None or other_spread is None:
        return (
            text + " One run of each says nothing of chance: sweep some seeds, such as seed=0,1,2, before you trust it."
        )
    # Of the difference of two means.
    noise = math.sqrt(spread**2 / sizes[best] + other_spread**2 / sizes[other])
    if second - low < 2 * noise:
        return text + f" Their difference, {second - low:.2g}, is within chance (standard error {noise:.2g})."
    return text + f" Their difference, {second - low:.2g}, is beyond twice its standard error, {noise:.2g}."


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text if type(error).__module__.startswith("featherweight") else f"{type(error).__name__}: {text}"


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) or value is None else str(value)
