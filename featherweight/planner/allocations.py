"""The largest allocations of a simulated step, as lines, tables and plain values."""

from collections.abc import Iterable
from typing import Any

from featherweight.memory import Allocation
from featherweight.report import Report, format_bytes

_GIB = 2**30


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


def add_largest(report: Report, title: str, largest: Iterable[tuple[Allocation, int]]) -> None:
    """Add a table of kinds of storages and how many there are of each."""
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
