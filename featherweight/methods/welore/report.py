"""What WeLore did or would do, in numbers and pictures: ranks, parameters and bytes are told apart."""

import re
from collections import defaultdict

import torch

from featherweight.linalg.spectrum import normalize
from featherweight.methods.welore.plan import Plan
from featherweight.report import Facts, Report

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
SPECTRUM_POINTS = 100


def split_name(name: str) -> tuple[int, str]:
    """Return number of the block and kind of the layer.

    Example:
        >>> split_name("model.layers.12.mlp.up_proj"), split_name("head")
        ((12, 'mlp.up_proj'), (0, 'head'))
    """
    found = _LAYER.search(name)
    return (int(found[1]), name[found.end() :]) if found else (0, name)


def plan_report(plan: Plan, title: str, numel_now: int | None = None) -> Report:
    """Return the report of a plan.

    Args:
        plan: what was decided.
        title: heading.
        numel_now: parameters of the model as it is now; for a check against the plan.
    """
    report = Report(title)
    totals = plan.totals()
    if numel_now is not None:
        assert numel_now == totals["parameters"][1], "the plan counts what the model holds"
    (numel_before, numel_after), (bytes_before, bytes_after) = totals["parameters"], totals["bytes"]
    matrices = list(plan.entries.values())
    dense = sum(e.target.rows * e.target.columns for e in matrices)
    stored = sum(e.numel for e in matrices)
    report.add_facts(
        {
            "rank reduction": round(plan.rank_reduction, 6),
            "threshold": plan.threshold,
            "matrices cut": sum(e.is_cut for e in matrices),
            "matrices that lost half of their rank (LRC)": sum(e.is_lrc for e in matrices),
            "parameters before": numel_before,
            "parameters after": numel_after,
            "parameters kept": round(numel_after / numel_before, 4),
            "bytes before": bytes_before,
            "bytes after": bytes_after,
            "bytes kept": round(bytes_after / bytes_before, 4),
            "FLOPs per token in these matrices, before": 2 * dense,
            "FLOPs per token in these matrices, after": 2 * stored,
        },
        title="Totals",
    )
    columns = ["module", "rows", "columns", "rank", "rank reduction", "LRC", "relative error", "storage"]
    columns += ["parameters before", "parameters after"]
    rows: list[list[object]] = [
        [
            *(e.name, e.target.rows, e.target.columns, e.rank, 1 - e.rank / e.target.full_rank, e.is_lrc),
            *(e.relative_error, e.storage, e.target.rows * e.target.columns, e.numel),
        ]
        for e in matrices
    ]
    report.add_table("Matrices", columns, rows)
    if plan.skipped:
        report.add_table("Left alone", ["module", "why"], list(plan.skipped.items()))
    _add_pictures(report, plan)
    return report


def rank_reduction(report: Report) -> float:
    """Return the share of ranks that a report says is gone."""
    section = report.section("Totals")
    assert isinstance(section, Facts)
    return float(section.facts["rank reduction"])  # type: ignore[arg-type]


def _add_pictures(report: Report, plan: Plan) -> None:
    by_kind: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in plan.entries:
        layer, kind = split_name(name)
        by_kind[kind].append((layer, name))
    ranks, spectra = {}, {}
    for kind, members in by_kind.items():
        members.sort()
        entries = [plan.entries[name] for _, name in members]
        ranks[kind] = ([layer for layer, _ in members], [e.rank / e.target.full_rank for e in entries])
        scaled = normalize(plan.spectra[members[len(members) // 2][1]])
        if scaled is not None:
            points = torch.linspace(0, len(scaled) - 1, min(SPECTRUM_POINTS, len(scaled))).round().long()
            spectra[kind] = ((points / (len(scaled) - 1)).tolist(), scaled[points].tolist())
    report.add_curves("Rank by layer", "layer", "rank kept (share of full rank)", ranks)
    if spectra:
        title = "Spectrum of the middle layer"
        report.add_curves(title, "position (share of full rank)", "singular value, scaled to 0..1", spectra)
