"""A plan on paper: the verdict, the recipes that fit, what fills the memory, and what was assumed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from featherweight.memory import CATEGORIES, Allocation
from featherweight.report import Report, format_bytes

if TYPE_CHECKING:
    from featherweight.planner.advice import Why
    from featherweight.planner.plan import Plan, PlanRow

_GIB = 2**30


def plan_report(plan: "Plan") -> Report:
    """Return the report of a plan."""
    report = Report(f"Plan for {plan.target.name}, {plan.target.budget_bytes / _GIB:.1f} GiB")
    report.add_note(verdict(plan), title="Verdict")
    if plan.rows:
        _add_rows(report, plan)
        _add_best(report, plan.rows[0], plan)
    if plan.refused:
        report.add_facts(dict(plan.refused), title="Does not fit")
    report.add_note("; ".join(plan.assumptions), title="Assumptions")
    return report


def verdict(plan: "Plan") -> str:
    """Return the answer in one sentence."""
    budget = format_bytes(plan.target.budget_bytes)
    if not plan.rows:
        return f"Nothing fits {budget}. {_miss(plan)}Shorten the sequence, take a smaller model, or allow more."
    best = plan.rows[0]
    need = best.need
    rows = best.recipe.micro_batch_size
    free = 1 - need.total_bytes / plan.target.budget_bytes
    return (
        f"Fits: {format_bytes(need.total_bytes)} of {budget} (between {format_bytes(need.low_bytes)} and "
        f"{format_bytes(need.high_bytes)}), {free:.0%} left free, with {best.family}, activations: {best.keeping}, "
        f"{rows} row{'s' * (rows > 1)} at once. "
        f"Gives up: {', '.join(best.tags) or 'nothing'}."
    )


def _miss(plan: "Plan") -> str:
    if (row := plan.nearest) is None:
        return ""
    usable, needed = plan.target.usable_bytes, row.need.total_bytes
    return (
        f"Nearest: {row.family}, activations: {row.keeping}, needs {format_bytes(needed)}, "
        f"{format_bytes(needed - usable)} more than the {format_bytes(usable)} that the margin leaves. "
    )


def why_report(why: "Why") -> Report:
    """Return the report of what fills the memory and what to change."""
    report = Report(f"Memory of {why.name}: {format_bytes(why.need.total_bytes)}")
    report.add_facts({name.replace("_", " ") + " (GiB)": n / _GIB for name, n in why.by_category.items() if n}, "Peak")
    _add_largest(report, f"Largest allocations at the peak ({why.phase})", why.largest)
    _add_largest(report, "The largest tensor alone", [(why.largest_tensor, 1)])
    rows = [
        [one.name, one.saved_bytes / _GIB, round(one.time_ratio, 2), one.is_exact, " ".join(one.overrides)]
        for one in why.changes
    ]
    columns = ["change", "saves (GiB)", "time (ratio)", "same numbers", "how"]
    if rows:
        report.add_table("Changes that save memory, the cheapest first", columns, rows)
    return report


def allocation_line(allocation: tuple[Allocation, int]) -> str:
    """Return a kind of storages and how many there are as a line: bytes together, role, number, shape, place."""
    one, count = allocation
    shape = "x".join(map(str, one.shape))
    times = f"{count} x " if count > 1 else ""
    role = one.category.replace("_", " ")
    return f"  {format_bytes(one.size_bytes * count):>11}  {role}: {times}{shape} {one.module or one.op}"


def allocation_dict(allocation: tuple[Allocation, int]) -> dict[str, Any]:
    """Return the same as plain values."""
    one, count = allocation
    return {
        "bytes": one.size_bytes,
        "count": count,
        "category": one.category,
        "module": one.module,
        "op": one.op,
        "shape": list(one.shape),
    }


def _add_largest(report: Report, title: str, largest: Iterable[tuple[Allocation, int]]) -> None:
    rows = [
        [
            one.module or one.op,
            one.category.replace("_", " "),
            "x".join(map(str, one.shape)),
            count,
            one.size_bytes * count / _GIB,
        ]
        for one, count in largest
    ]
    report.add_table(title, ["module", "category", "shape", "number", "together (GiB)"], rows)


def _add_rows(report: Report, plan: "Plan") -> None:
    rows = []
    for row in plan.rows:
        rows.append(
            [
                row.family,
                row.keeping,
                ", ".join(row.tags) or "nothing",
                round(row.need.total_bytes / _GIB, 2),
                round(row.need.total_bytes / plan.target.budget_bytes, 2),
                round(row.tokens_per_s),
            ]
        )
    columns = ["recipe", "activations", "gives up", "needs (GiB)", "share of the budget", "tokens/s (estimate)"]
    report.add_table("Recipes that fit, the most faithful first", columns, rows)
    report.add_bars(
        "Memory at the peak",
        "memory (GiB)",
        {row.family: _parts(row) for row in plan.rows} | {"budget": {"budget": plan.target.budget_bytes / _GIB}},
    )


def _parts(row: "PlanRow") -> dict[str, float]:
    """Return what a row takes, from the tensors outwards, in GiB; they add up to what it needs."""
    by_category, total = row.estimate.peak_by_category, row.need.total_bytes
    shown = [name for name in CATEGORIES if by_category[name] > 0.005 * total]
    parts = {name.replace("_", " "): by_category[name] / _GIB for name in shown}
    rest = total - sum(by_category[name] for name in shown)
    return {**parts, "allocator, workspaces, context": rest / _GIB}


def _add_best(report: Report, best: "PlanRow", plan: "Plan") -> None:
    _add_largest(report, f"Largest allocations at the peak of {best.family}", best.estimate.top_allocations(8))
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
            "search (s)": plan.seconds,
        },
        title=f"{best.family} in figures",
    )
