"""A section as a terminal shows it: tables that fit the width, curves summed up in numbers and a line of blocks."""

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from featherweight.report.formatting import Number, finite_values, format_column, format_facts, stands_right
from featherweight.report.sections import Curves, Facts, Note, Section, as_table


def terminal_section(section: Section, width: int, can_draw: bool) -> RenderableType:
    """Return what rich prints of a section.

    Args:
        section: the section.
        width: of the terminal, in characters.
        can_draw: the terminal knows characters beyond ASCII.
    """
    if isinstance(section, Note):
        return Text(f"{section.title}: {section.text}")
    heading = Text(section.title, style="bold cyan")
    table = as_table(section)
    if not table.rows or not table.columns:
        return Group(heading, Text("no data", style="dim"))
    values = list(zip(*table.rows, strict=True))
    if isinstance(section, Facts):
        columns = [["fact", *section.facts], ["value", *format_facts(section.facts)]]
    else:
        columns = [[name, *format_column(column, name)] for name, column in zip(table.columns, values, strict=True)]
    is_right = [stands_right(column) for column in values]
    if isinstance(section, Curves) and can_draw:
        columns.append(["course", *[_sparkline(ys) for _, ys in section.curves.values()]])
        is_right.append(False)
    least = [_least_width(column, right) for column, right in zip(columns, is_right, strict=True)]
    full = [max(map(len, column)) for column in columns]
    grids: list[RenderableType] = []
    for block in _blocks(least, width):
        widths = _fit([full[i] for i in block], [least[i] for i in block], width - 2 * len(block))
        grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        grid.show_header = not isinstance(section, Facts)
        for i, column_width in zip(block, widths, strict=True):
            justify: Literal["left", "right"] = "right" if is_right[i] else "left"
            grid.add_column(Text(columns[i][0]), justify=justify, overflow="fold", width=column_width)
        for row in zip(*[columns[i][1:] for i in block], strict=True):
            grid.add_row(*[Text(text) for text in row])
        grids += [Text(), grid] if grids else [grid]
    return Group(heading, *grids)


def _least_width(column: Sequence[str], is_right: bool) -> int:
    """Return how narrow a column may get: headers and text break between words, long words anywhere, numbers never."""
    header, *cells = column
    words = [*header.split(), *(cells if is_right else [word for cell in cells for word in cell.split()])]
    longest = max(map(len, words), default=1)
    return longest if is_right else min(24, longest)


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Split columns into tables that fit a terminal; each begins with the first column, which names the rows."""
    blocks = [[0]]
    for i in range(1, len(widths)):
        if sum(widths[one] + 2 for one in [*blocks[-1], i]) > width and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(i)
    return blocks


def _fit(full: list[int], least: list[int], width: int) -> list[int]:
    """Narrow the columns with the most to spare until they fit, none below its least width."""
    widths = list(full)
    while sum(widths) > width and widths != least:
        spare = [now - low for now, low in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    return widths


def _sparkline(values: Sequence[Number], width: int = 24) -> str:
    """Draw the means of `width` equal stretches of a curve in eight heights; a dot where no value is finite."""
    count = min(width, len(values))
    stretches = [finite_values(values[i * len(values) // count : (i + 1) * len(values) // count]) for i in range(count)]
    # Halved before they are added, so that values near the largest float do not overflow.
    means = [sum(value / len(stretch) for value in stretch) if stretch else None for stretch in stretches]
    heights = [mean for mean in means if mean is not None]
    if not heights:
        return ""
    low, span = min(heights) / 2, max(heights) / 2 - min(heights) / 2
    shares = [None if mean is None else (mean / 2 - low) / span if span else 0.5 for mean in means]
    return "".join("·" if share is None else "▁▂▃▄▅▆▇█"[min(7, int(8 * share))] for share in shares)
