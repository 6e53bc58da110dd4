"""The sections of a report: tables, curves, stacked bars, facts and notes, made of plain numbers and text only."""

import numbers
from dataclasses import dataclass
from typing import Any, ClassVar

from featherweight.report.formatting import Cell, Number, finite_values


@dataclass
class Table:
    """A table; each column name carries its unit, each row has one cell per column."""

    kind: ClassVar[str] = "table"
    title: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass
class Curves:
    """Named curves over a common axis; axis labels carry their units."""

    kind: ClassVar[str] = "curves"
    title: str
    x_label: str
    y_label: str
    curves: dict[str, list[list[Number]]]
    """Name -> [xs, ys], both of the same length."""
    log_y: bool = False


@dataclass
class Bars:
    """One stacked bar per group, one colour per category; the label of the axis carries the unit."""

    kind: ClassVar[str] = "bars"
    title: str
    y_label: str
    bars: dict[str, dict[str, Number]]
    """Group -> category -> value."""


@dataclass
class Facts:
    """Names with one value each: machine, versions, counts."""

    kind: ClassVar[str] = "facts"
    title: str
    facts: dict[str, Cell]


@dataclass
class Note:
    """A sentence or a paragraph."""

    kind: ClassVar[str] = "note"
    title: str
    text: str


Section = Table | Curves | Bars | Facts | Note


KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Table, Curves, Bars, Facts, Note)}


def plain_number(value: Any) -> Number:
    """Return a plain int or float of a Python, NumPy or one-element tensor number."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value)


def plain_cell(value: Any) -> Cell:
    """Return what a table holds of a value: a plain number, text, a boolean or None."""
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):
        value = value.item()
        if isinstance(value, bool):
            return value
    return plain_number(value) if isinstance(value, numbers.Real) else str(value)


def as_table(section: Table | Facts | Curves | Bars) -> Table:
    """Return the numbers of a section as a table."""
    if isinstance(section, Table):
        return section
    if isinstance(section, Facts):
        return Table(section.title, ["fact", "value"], [[name, value] for name, value in section.facts.items()])
    if isinstance(section, Curves):
        columns = ["curve", f"last {section.x_label}", f"first {section.y_label}", "lowest", "last", "points"]
        rows: list[list[Cell]] = []
        for name, (xs, ys) in section.curves.items():
            finite = finite_values(ys)
            rows.append(
                [name, xs[-1], ys[0], min(finite, default=None), ys[-1], len(ys)] if ys else [name, *[None] * 4, 0]
            )
        return Table(section.title, columns, rows)
    categories = list(dict.fromkeys(name for values in section.bars.values() for name in values))
    rows = []
    for group, values in section.bars.items():
        rows.append([group, *[values.get(name) for name in categories], sum(finite_values(values.values()))])
    return Table(section.title, [section.y_label, *categories, "total"], rows)
