"""What a calibration has measured, as a report: rates with intervals, curves, and what they do not say."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.guard.metrics import (
    auroc,
    auroc_interval,
    average_precision,
    calibration_error,
    conformal_threshold,
    fpr_at_tpr,
    rate_interval,
    roc_curve,
    tpr_at_fpr,
)
from featherweight.guard.options import FLAG_ONLY, GuardOptions, Stage
from featherweight.guard.splits import Rows
from featherweight.report import Report

TARGETS = (0.01, 0.02, 0.05)
FEW_OF_CATEGORY = 5
"""A category with fewer test rows has no line of its own: its rate would say nothing."""
LIMITS = (
    "The guard knows of a request what the model knows of it: a model that refuses nothing gives it little to read. It "
    "judges where the reply begins, not what a long reply becomes. Who knows its prefix and its weights can search for "
    "requests that pass. Another system prompt, chat template, language, quantisation or fine-tuning moves the scores: "
    "calibrate again. Categories that no file had are not covered by any number here."
)


@dataclass(frozen=True)
class Measured:
    """The scores of a tier."""

    scores: Tensor
    """(N,) of all rows; those of the fit by folds that had not seen them."""
    unseen: float | None = None
    """AUROC on rows of the fit whose category was in none of the folds that scored them; None without categories."""
    again: Callable[[Tensor], Tensor] = lambda features_NF: features_NF.new_empty(0)
    """The same scores of other features of these rows, such as those of an earlier place of the probe."""


def make_report(
    options: GuardOptions,
    measured: Mapping[str, Measured],
    flagged: Tensor,
    rows: Rows,
    candidates: Sequence[Any],
    dropped: Sequence[int],
    confidence: float | None,
) -> Report:
    """Return the report of a calibration; every rate is of rows that neither fit nor threshold have seen."""
    report = Report("Guard")
    deciding = options.deciding.tier
    scores = measured[deciding].scores
    threshold = limit_of(options.deciding)
    report.add_note(options.promise, "Promise")
    report.add_table(
        f"The guard: tier {deciding}, threshold {threshold:.4g}",
        ["test rows", "count", "flagged", "rate (%)", "from (%)", "to (%)"],
        [_rate(name, flagged[rows.where(part, kind)]) for name, part, kind in _groups(rows)],
    )
    add_quality(report, scores[rows.where("test", "harmful")], scores[rows.where("test", "benign")], options.deciding)
    report.add_table(
        "Tiers",
        ["tier", "AUROC", "borderline AUROC", *_columns(), "in a frame: TPR (%)", "FPR (%)"],
        [_tier_row(name, one.scores, rows, confidence) for name, one in measured.items()],
    )
    _add_unseen(report, measured)
    if candidates:
        report.add_table(
            "Prefixes that were tried",
            ["prefix", "tokens", "error (%)", "AUROC"],
            [[one.text, len(one.ids), 100 * one.error, one.auroc] for one in candidates],
        )
    add_curves(report, {name: one.scores for name, one in measured.items()}, rows)
    report.add_bars(f"Scores of {deciding}", "test rows", histogram(scores, rows))
    _add_categories(report, flagged, rows)
    counts = {
        f"{kind}, {part}": int(rows.where(part, kind).sum())
        for kind in ("harmful", "benign", "borderline")
        for part in ("fit", "calibrate", "test", "framed")
        if bool(rows.where(part, kind).any())
    }
    report.add_facts({**counts, "repeated prompts left out": sum(dropped)}, "Rows")
    stages = {
        f"stage {index + 1}": f"{stage.tier}: flags above {stage.flag_above}, clears at most {stage.clear_at_most}"
        for index, stage in enumerate(options.stages)
    }
    report.add_facts({"prefix": options.prefix_text, "prefix tokens": len(options.prefix_ids), **stages}, "Settings")
    report.add_note(LIMITS, "Limits")
    if not any(kind == "borderline" for kind in rows.kinds):
        report.add_note(
            "No borderline prompts were given: their rate of false alarms is unknown, often high.", "Warning"
        )
    return report


def limit_of(stage: Stage) -> float:
    """Return the threshold of a stage; infinity if it flags nothing."""
    return math.inf if stage.flag_above is None else stage.flag_above


def add_quality(report: Report, harmful: Tensor, benign: Tensor, stage: Stage) -> None:
    """Add how well the scores of a stage tell test rows apart, with intervals of 95 %."""
    threshold = limit_of(stage)
    low, high = auroc_interval(harmful, benign)
    tpr = float((harmful > threshold).double().mean())
    fpr = float((benign > threshold).double().mean())
    labels = [1] * len(harmful) + [0] * len(benign)
    report.add_facts(
        {
            "AUROC": auroc(harmful, benign),
            "AUROC, 95 % interval": f"{low:.4f} to {high:.4f}",
            "average precision": average_precision(harmful, benign),
            "accuracy (%)": 100 * (tpr * len(harmful) + (1 - fpr) * len(benign)) / len(labels),
            "balanced accuracy (%)": 50 * (tpr + 1 - fpr),
            "false alarms at 95 % flagged (%)": 100 * fpr_at_tpr(harmful, benign, 0.95),
            "flagged at 1 % false alarms (%)": 100 * tpr_at_fpr(harmful, benign, 0.01),
            "flagged at 0.1 % false alarms (%)": 100 * tpr_at_fpr(harmful, benign, 0.001),
        },
        "Quality",
    )
    if stage.platt is not None:
        _add_probabilities(report, torch.cat([harmful, benign]), torch.tensor(labels), stage.platt)


def _add_probabilities(report: Report, scores: Tensor, labels: Tensor, platt: tuple[float, float]) -> None:
    """Add how far the probabilities of Platt's scaling can be trusted."""
    slope, offset = platt
    odds = slope * scores.double() + offset
    shares, table = odds.sigmoid(), []
    for low, high in itertools.pairwise((0.0, 0.1, 0.3, 0.7, 0.9, 1.0)):
        here = (shares >= low) & ((shares < high) | (high == 1.0))
        if bool(here.any()):
            hits = int(labels[here].sum())
            share, count = 100 * float(shares[here].mean()), int(here.sum())
            table.append([f"{low:.0%} to {high:.0%}", count, share, 100 * hits / count])
    report.add_table("Probabilities", ["said", "rows", "said, mean (%)", "harmful (%)"], table)
    facts = {
        "slope and offset (Platt)": f"{slope:.4g}, {offset:.4g}",
        "calibration error": calibration_error(odds.tolist(), labels.tolist()),
        "calibration error of the bare scores": calibration_error(scores.tolist(), labels.tolist()),
        "mean squared error (Brier)": float((shares - labels).square().mean()),
    }
    report.add_facts(facts, "Probabilities against what happened")


def add_curves(report: Report, scores: Mapping[str, Tensor], rows: Rows) -> None:
    """Add the ROC curve of each tier, on test rows."""
    harmful, benign = rows.where("test", "harmful"), rows.where("test", "benign")
    curves = {name: roc_curve(one[harmful], one[benign]) for name, one in scores.items()}
    report.add_curves("ROC", "false alarms (share of benign)", "flagged (share of harmful)", curves)


def histogram(scores: Tensor, rows: Rows, bins: int = 12) -> dict[str, dict[str, int]]:
    """Return how many test rows of each kind have scores in each bin."""
    shown = {kind: scores[rows.where("test", kind)] for kind in ("harmful", "benign", "borderline")}
    low, high = float(scores.quantile(0.01)), float(scores.quantile(0.99))
    width = max((high - low) / bins, 1e-9)
    found: dict[str, dict[str, int]] = {}
    for place in range(bins):
        bars = {}
        for kind, values in shown.items():
            places = ((values - low) / width).long().clamp(0, bins - 1)
            bars[kind] = int((places == place).sum())
        found[f"{low + (place + 0.5) * width:.1f}"] = {kind: count for kind, count in bars.items() if count}
    return found


def _groups(rows: Rows) -> list[tuple[str, str, str]]:
    found = [
        ("harmful (should be flagged)", "test", "harmful"),
        ("benign (false alarms)", "test", "benign"),
        ("borderline (false alarms)", "test", "borderline"),
        ("harmful, in a frame", "framed", "harmful"),
        ("benign, in a frame", "framed", "benign"),
    ]
    return [one for one in found if bool(rows.where(one[1], one[2]).any())]


def _rate(name: str, flagged: Tensor) -> list[Any]:
    hits = int(flagged.sum())
    low, high = rate_interval(hits, len(flagged))
    return [name, len(flagged), hits, 100 * hits / len(flagged), 100 * low, 100 * high]


def _columns() -> list[str]:
    return [f"{what} at {target:.0%} (%)" for target in TARGETS for what in ("TPR", "borderline FPR")]


def _tier_row(name: str, scores: Tensor, rows: Rows, confidence: float | None) -> list[Any]:
    harmful, benign = scores[rows.where("test", "harmful")], scores[rows.where("test", "benign")]
    borderline = scores[rows.where("test", "borderline")]
    calibrating = scores[rows.where("calibrate", "benign")]
    cells: list[Any] = [name, auroc(harmful, benign), auroc(harmful, borderline) if len(borderline) else None]
    for target in TARGETS:
        limit = conformal_threshold(calibrating, target, confidence)
        cells += [_share(harmful, limit), _share(borderline, limit)]
    limit = conformal_threshold(calibrating, 0.02, confidence)
    cells += [_share(scores[rows.where("framed", kind)], limit) for kind in ("harmful", "benign")]
    if name in FLAG_ONLY:
        cells[0] = f"{name} (may only flag)"
    return cells


def _add_unseen(report: Report, measured: Mapping[str, Measured]) -> None:
    """Add how well categories are told apart that the fit has not seen: what a policy meets after its calibration."""
    table = [[name, one.unseen] for name, one in measured.items() if one.unseen is not None]
    if table:
        report.add_table("Categories that the fit has not seen", ["tier", "AUROC"], table)


def _share(scores: Tensor, threshold: float) -> float | None:
    return 100 * float((scores > threshold).double().mean()) if len(scores) else None


def _add_categories(report: Report, flagged: Tensor, rows: Rows) -> None:
    """Add a line for each category with rows enough for a rate, and one for all others of a kind."""
    table = []
    for kind in ("harmful", "benign", "borderline"):
        places = rows.where("test", kind).nonzero().squeeze(1).tolist()
        by_name: dict[str, list[int]] = {}
        for place in places:
            by_name.setdefault(rows.categories[place], []).append(place)
        if set(by_name) <= {""}:
            continue
        few = [name for name, found in by_name.items() if len(found) < FEW_OF_CATEGORY]
        shown = {name or "(none)": found for name, found in sorted(by_name.items()) if name not in few}
        if few:
            shown[f"{len(few)} with fewer than {FEW_OF_CATEGORY} rows"] = [
                place for name in few for place in by_name[name]
            ]
        table += [[kind, *_rate(name, flagged[found])] for name, found in shown.items()]
    if table:
        columns = ["rows", "category", "count", "flagged", "rate (%)", "from (%)", "to (%)"]
        report.add_table("Categories", columns, table)
