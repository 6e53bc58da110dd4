"""The pages of a plan: the recipes that fit, and the best of them in figures."""

from collections.abc import Sequence

from featherweight.memory import CATEGORIES
from featherweight.planner.allocations import add_largest
from featherweight.planner.row import PlanRow
from featherweight.report import Report

_GIB = 2**30


def add_rows(report: Report, rows: Sequence[PlanRow], budget_bytes: int) -> None:
    """Add the recipes that fit: a table, and a bar for the memory of each beside the budget."""
    table = []
    for row in rows:
        table.append(
            [
                row.family,
                row.keeping,
                ", ".join(row.tags) or "nothing",
                round(row.need.total_bytes / _GIB, 2),
                row.need.total_bytes / budget_bytes,
                round(row.tokens_per_s),
                *([] if row.host is None else [round(row.host.total_bytes / _GIB, 2)]),
            ]
        )
    columns = ["recipe", "activations", "gives up", "needs (GiB)", "share of the budget", "tokens/s (estimate)"]
    columns += ["of the host (GiB)"] * any(row.host is not None for row in rows)
    report.add_table("Recipes that fit, the most faithful first", columns, table)
    report.add_bars(
        "Memory at the peak",
        "memory (GiB)",
        {row.family: _parts(row) for row in rows} | {"budget": {"budget": budget_bytes / _GIB}},
    )


def _parts(row: PlanRow) -> dict[str, float]:
    """Return what a row takes, from the tensors outwards, in GiB; they add up to what it needs."""
    by_category, total = row.estimate.peak_by_category, row.need.total_bytes
    shown = [name for name in CATEGORIES if by_category[name] > 0.005 * total]
    parts = {name.replace("_", " "): by_category[name] / _GIB for name in shown}
    rest = total - sum(by_category[name] for name in shown)
    return {**parts, "allocator, workspaces, context": rest / _GIB}


def add_best(report: Report, best: PlanRow, seconds: float) -> None:
    """Add what fills the memory of a recipe, and its figures; `seconds` is how long the search took."""
    add_largest(report, f"Largest allocations at the peak of {best.family}", best.estimate.top_allocations(8))
    series = best.estimate.timeline.series()
    curves = {
        name.replace("_", " "): (list(map(float, range(len(values)))), [value / _GIB for value in values])
        for name, values in series.items()
        if max(values, default=0) > 0.005 * best.need.allocated_bytes
    }
    report.add_curves("Memory over the first two steps, by category", "allocations, in order", "memory (GiB)", curves)
    report.add_facts(
        {
            "phase of the peak": best.estimate.timeline.peak().phase,
            "tensors (GiB)": best.need.allocated_bytes / _GIB,
            "held by the allocator (GiB)": best.need.reserved_bytes / _GIB,
            "workspaces (GiB)": best.need.workspace_bytes / _GIB,
            "context (GiB)": best.need.context_bytes / _GIB,
            "arithmetic of a step (TFLOP)": sum(best.estimate.cost.flops.values()) / 1e12,
            "search (s)": seconds,
        },
        title=f"{best.family} in figures",
    )
