"""Reports: what a run, a measurement or a comparison has to say, for a terminal, a program, a browser and a paper.

A `Report` is a title and a list of sections: tables with units in their column names, curves, stacked bars, facts and
notes. It holds plain numbers and text only, so it survives JSON exactly, including NaN and infinity. Pictures are drawn
by matplotlib, which is imported when the first one is drawn.
Source of the palette: Okabe and Ito, Color Universal Design, 2008 (distinguishable with every common colour blindness).
"""

import html
import io
import json
import math
import numbers
import os
import re
import textwrap
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from featherweight.config import write_atomically
from featherweight.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Number = int | float
Cell = str | int | float | bool | None


def format_bytes(count: float) -> str:
    """Write a number of bytes in the largest binary unit that keeps it at or above one.

    Args:
        count: bytes; may be negative, NaN or infinite.

    Example:
        >>> format_bytes(1320702443), format_bytes(512), format_bytes(-2048)
        ('1.23 GiB', '512 B', '-2.00 KiB')
    """
    if not math.isfinite(count):
        return f"{count} B"
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        # Compare what the next smaller unit would print: 1048575 bytes are 1.00 MiB and not 1024.00 KiB.
        if round(abs(count) / 1024 ** (exponent - 1), 2 if exponent > 1 else None) >= 1024:
            return f"{count / 1024**exponent:.2f} {unit}"
    return f"{count:.0f} B"


def format_number(value: float) -> str:
    """Write a number with thousands separators and, unless it is whole, four significant digits.

    Example:
        >>> format_number(134515008), format_number(3.14159), format_number(1e-5), format_number(float("nan"))
        ('134,515,008', '3.142', '1e-05', 'nan')
    """
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


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
_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Table, Curves, Bars, Facts, Note)}


@dataclass
class Report:
    """A title and sections, in the order in which they were added.

    Numbers may come as Python, NumPy or one-element tensor values; they are stored as plain `int` and `float`.
    `print(report)` gives plain text; a table's cells are not rounded in JSON.

    Args:
        title: what was run or measured.
        sections: usually left out and filled by the `add_` methods.

    Example:
        >>> report = Report("Memory of one step")
        >>> report.add_table("Peak", ["method", "optimizer state (MiB)"], [["adamw", 1026.25], ["galore", 210.5]])
        >>> print(report)
        Memory of one step
        <BLANKLINE>
        Peak
        method  optimizer state (MiB)
        ─────────────────────────────
        adamw                   1,026
        galore                    210
    """

    title: str
    sections: list[Section] = field(default_factory=list)

    def add_table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Add a table.

        Args:
            title: heading.
            columns: names with units, such as "peak memory (GiB)".
            rows: one cell per column; numbers, text, booleans or None (shown as "-").

        Raises:
            ConfigError: if a row has another number of cells than there are columns.
        """
        stored = [[_cell(value) for value in row] for row in rows]
        for index, row in enumerate(stored):
            if len(row) != len(columns):
                raise ConfigError(
                    f"Report table '{title}': row {index} has cells={len(row)}, which does not fit the header; "
                    f"expected {len(columns)}. Give one cell per column, None where there is no value."
                )
        self.sections.append(Table(title, [str(column) for column in columns], stored))

    def add_curves(
        self,
        title: str,
        x_label: str,
        y_label: str,
        curves: Mapping[str, tuple[Iterable[Any], Iterable[Any]]],
        log_y: bool = False,
    ) -> None:
        """Add a picture of curves.

        Args:
            title: heading; `save_picture` finds the section by it.
            x_label: quantity and unit of the horizontal axis.
            y_label: quantity and unit of the vertical axis.
            curves: name -> (xs, ys). Values that are not finite leave a gap.
            log_y: draw the vertical axis in powers of ten; values at or below zero leave a gap.

        Raises:
            ConfigError: if xs and ys of a curve differ in length.
        """
        stored = {str(name): [[_number(x) for x in xs], [_number(y) for y in ys]] for name, (xs, ys) in curves.items()}
        for name, (xs, ys) in stored.items():
            if len(xs) != len(ys):
                raise ConfigError(
                    f"Report curves '{title}': '{name}' has {len(xs)} xs and ys={len(ys)}, which do not fit together; "
                    "expected equal lengths. Give one y for each x."
                )
        self.sections.append(Curves(title, x_label, y_label, stored, log_y))

    def add_bars(self, title: str, y_label: str, bars: Mapping[str, Mapping[str, Any]]) -> None:
        """Add a picture of stacked bars, such as memory by category for each method.

        Args:
            title: heading; `save_picture` finds the section by it.
            y_label: quantity and unit of the values.
            bars: group -> category -> value. Groups need not have the same categories; values that are not finite are
                left out of the picture.
        """
        stored = {
            str(group): {str(name): _number(value) for name, value in values.items()} for group, values in bars.items()
        }
        self.sections.append(Bars(title, y_label, stored))

    def add_facts(self, facts: Mapping[str, Any], title: str = "Facts") -> None:
        """Add names with one value each, such as the machine and the versions of a run."""
        self.sections.append(Facts(title, {str(name): _cell(value) for name, value in facts.items()}))

    def add_note(self, text: str, title: str = "Note") -> None:
        """Add a sentence or a paragraph."""
        self.sections.append(Note(title, str(text)))

    def section(self, title: str) -> Section:
        """Return the first section of this title.

        Raises:
            ConfigError: if there is none; names the nearest title.
        """
        for section in self.sections:
            if section.title == title:
                return section
        titles = [section.title for section in self.sections]
        hint = did_you_mean(title, titles) if titles else "Add sections first."
        raise ConfigError(f"Report '{self.title}': section='{title}' is unknown; expected a title of a section. {hint}")

    def print_terminal(self, console: Console | None = None) -> None:
        """Print the report as tables; curves and bars are summed up in numbers.

        Args:
            console: where to print; default: standard output.
        """
        console = console or Console()
        # Old terminals that cannot show these characters would stop the program.
        can_draw = console.encoding.lower().startswith("utf")
        console.print(Text(self.title, style="bold"))
        for section in self.sections:
            console.print()
            console.print(_terminal_section(section, console.width, can_draw))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=160, color_system=None, force_terminal=False, _environ={})
        with console.capture() as capture:
            self.print_terminal(console)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def to_json(self) -> str:
        """Return the report as JSON text; numbers that JSON does not know become `{"non_finite": "nan"}`."""
        sections = [{"kind": section.kind, **asdict(section)} for section in self.sections]
        return json.dumps(_encode({"title": self.title, "sections": sections}), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the report that `to_json` wrote, equal in every number.

        Raises:
            ConfigError: if the text is no JSON or no report.
        """
        try:
            content = _decode(json.loads(text))
            sections = []
            for values in content["sections"]:
                section = dict(values)
                sections.append(_KINDS[section.pop("kind")](**section))
            return cls(content["title"], sections)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"Report: text={text[:40]!r} holds no report ({type(error).__name__}: {error}); "
                "expected what Report.to_json wrote. Write it anew."
            ) from error

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page with all tables and pictures; it follows the reader's light or dark theme.

        Raises:
            ConfigError: if the file cannot be written; an older file then stays as it was.
        """
        write_atomically(path, _page(self))

    def save_picture(self, path: str | os.PathLike[str], section_title: str) -> None:
        """Write the picture of a section as a PNG file of 1440 pixels width.

        Raises:
            ConfigError: if no section has this title, it has no picture, or the file cannot be written.
        """
        section = self.section(section_title)
        if not isinstance(section, Curves | Bars):
            titles = [one.title for one in self.sections if isinstance(one, Curves | Bars)]
            raise ConfigError(
                f"Report '{self.title}': section='{section_title}' is a {section.kind} and has no picture; "
                f"expected curves or bars. Choose one of: {', '.join(titles) or 'none here'}."
            )
        write_atomically(path, _picture(section, "png"))


# ---- plain values ---------------------------------------------------------------------------------------------------


def _number(value: Any) -> Number:
    """Return a plain int or float of a Python, NumPy or one-element tensor number."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value)


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):
        value = value.item()
        if isinstance(value, bool):
            return value
    return _number(value) if isinstance(value, numbers.Real) else str(value)


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"non_finite": str(value)}
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return [_encode(item) for item in value] if isinstance(value, list | tuple) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"non_finite"} and value["non_finite"] in ("nan", "inf", "-inf"):
            return float(value["non_finite"])
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value


def _format_column(values: Sequence[Cell]) -> list[str]:
    """Format the cells of a column.

    If one is no whole number, all share the decimals that keep three digits of each; but where they span more than
    three powers of ten (a loss above a count of tokens), each has four digits of its own.
    """
    decimals = None
    if _is_numeric(values) and any(isinstance(value, float) for value in values):
        sizes = [abs(value) for value in values if isinstance(value, int | float) and math.isfinite(value) and value]
        if sizes and max(sizes) < 1e6:
            digits = [math.floor(math.log10(size)) for size in (max(sizes), min(sizes))]
            if digits[0] - digits[1] <= 2:
                decimals = max(0, 3 - digits[0], 2 - digits[1])
    return [_format_cell(value, decimals if decimals is not None and decimals <= 5 else None) for value in values]


def _format_cell(value: Cell, decimals: int | None = None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if math.isfinite(value) and decimals is not None:
        return f"{value:,.{decimals}f}"
    return format_number(value)


def _is_numeric(values: Sequence[Cell]) -> bool:
    filled = [value for value in values if value is not None]
    return bool(filled) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in filled)


def _finite(values: Iterable[Number]) -> list[Number]:
    return [value for value in values if math.isfinite(value)]


# ---- sections as tables (terminal, and the data behind a picture) ---------------------------------------------------


def _as_table(section: Table | Facts | Curves | Bars) -> Table:
    """Return the numbers of a section as a table."""
    if isinstance(section, Table):
        return section
    if isinstance(section, Facts):
        return Table(section.title, ["fact", "value"], [[name, value] for name, value in section.facts.items()])
    if isinstance(section, Curves):
        columns = ["curve", f"last {section.x_label}", f"first {section.y_label}", "lowest", "last", "points"]
        rows: list[list[Cell]] = []
        for name, (xs, ys) in section.curves.items():
            finite = _finite(ys)
            rows.append(
                [name, xs[-1], ys[0], min(finite, default=None), ys[-1], len(ys)] if ys else [name, *[None] * 4, 0]
            )
        return Table(section.title, columns, rows)
    categories = list(dict.fromkeys(name for values in section.bars.values() for name in values))
    rows = []
    for group, values in section.bars.items():
        rows.append([group, *[values.get(name) for name in categories], sum(_finite(values.values()))])
    return Table(section.title, [section.y_label, *categories, "total"], rows)


def _terminal_section(section: Section, width: int, can_draw: bool) -> RenderableType:
    if isinstance(section, Note):
        return Text(f"{section.title}: {section.text}")
    heading = Text(section.title, style="bold cyan")
    table = _as_table(section)
    if not table.rows or not table.columns:
        return Group(heading, Text("no data", style="dim"))
    values = list(zip(*table.rows, strict=True))
    columns = [[name, *_format_column(column)] for name, column in zip(table.columns, values, strict=True)]
    is_right = [_is_numeric(column) for column in values]
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
    stretches = [_finite(values[i * len(values) // count : (i + 1) * len(values) // count]) for i in range(count)]
    # Halved before they are added, so that values near the largest float do not overflow.
    means = [sum(value / len(stretch) for value in stretch) if stretch else None for stretch in stretches]
    heights = [mean for mean in means if mean is not None]
    if not heights:
        return ""
    low, span = min(heights) / 2, max(heights) / 2 - min(heights) / 2
    shares = [None if mean is None else (mean / 2 - low) / span if span else 0.5 for mean in means]
    return "".join("·" if share is None else "▁▂▃▄▅▆▇█"[min(7, int(8 * share))] for share in shares)


# ---- pictures -------------------------------------------------------------------------------------------------------

_INK, _GRID, _PAPER = "#1f2328", "#d8dce1", "#ffffff"
# Okabe and Ito without yellow and black, which vanish on one of the two themes; the second colour is for the dark one.
_PALETTE = (
    ("#0072b2", "#4ba3e0"),
    ("#d55e00", "#f08a4b"),
    ("#009e73", "#35c79b"),
    ("#cc79a7", "#e19cc3"),
    ("#e69f00", "#f0b840"),
    ("#56b4e9", "#8fd0f7"),
    ("#7f7f7f", "#a6a6a6"),
)
_DASHES = ("-", "--", ":", "-.")
# Beyond this, sums and axis margins overflow in matplotlib; such a number means a diverged run anyway.
_LARGEST_DRAWN = 1e100


def _picture(section: Curves | Bars, file_format: str) -> bytes:
    """Draw a section; a PNG carries its title, an SVG stands under a heading of the page."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _GRID,
        "axes.unicode_minus": True,
        # Names of users may hold dollar signs, which are no formulas.
        "text.parse_math": False,
        "text.usetex": False,
        # Equal ids in two pictures of one page would make them share clip paths.
        "svg.hashsalt": section.title,
        "svg.fonttype": "path",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes; the table below the picture shows it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
        figure = Figure(figsize=(9, 4.5), dpi=160, layout=layout, facecolor=_PAPER)
        axes = figure.add_subplot(facecolor=_PAPER)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        if isinstance(section, Curves):
            _draw_curves(axes, section)
        else:
            _draw_bars(axes, section)
        legend_rows = _add_legend(axes)
        if file_format == "png":
            axes.set_title(_clip(section.title, 80), loc="left", fontweight="bold", pad=12 + 16 * legend_rows)
        buffer = io.BytesIO()
        # A date would make equal reports differ.
        metadata = {"Date": None} if file_format == "svg" else None
        figure.savefig(buffer, format=file_format, metadata=metadata, transparent=file_format == "svg")
    return buffer.getvalue()


def _draw_curves(axes: "Axes", section: Curves) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    drawn_x: list[Number] = []
    drawn_y: list[Number] = []
    for index, (name, (xs, ys)) in enumerate(section.curves.items()):
        visible = [
            math.isfinite(x) and abs(x) < _LARGEST_DRAWN and abs(y) < _LARGEST_DRAWN and (y > 0 or not section.log_y)
            for x, y in zip(xs, ys, strict=True)
        ]
        heights = [y if is_visible else math.nan for y, is_visible in zip(ys, visible, strict=True)]
        drawn_x += [x for x, is_visible in zip(xs, visible, strict=True) if is_visible]
        drawn_y += [y for y, is_visible in zip(ys, visible, strict=True) if is_visible]
        axes.plot(
            [x if is_visible else math.nan for x, is_visible in zip(xs, visible, strict=True)],
            heights,
            color=_PALETTE[index % len(_PALETTE)][0],
            linestyle=_DASHES[index // len(_PALETTE) % len(_DASHES)],
            linewidth=1.8,
            # Few points are worth seeing one by one, and a single one has no line.
            marker="o" if sum(visible) <= 25 else "",
            markersize=4,
            label=_clip(name, 60),
        )
    axes.grid(axis="y", linewidth=0.8)
    axes.set_xlabel(section.x_label)
    axes.set_ylabel(section.y_label)
    if not drawn_y:
        _say_no_data(axes)
        return
    if section.log_y:
        axes.set_yscale("log")
        decades = math.log10(max(drawn_y)) - math.log10(min(drawn_y))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=all(isinstance(x, int) for x in drawn_x)))
    axes.xaxis.set_major_formatter(_tick_formatter(drawn_x))
    axes.yaxis.set_major_formatter(_tick_formatter(drawn_y))
    axes.margins(x=0.02)


def _draw_bars(axes: "Axes", section: Bars) -> None:
    groups = list(section.bars)
    categories = list(dict.fromkeys(name for values in section.bars.values() for name in values))
    above, below = [0.0] * len(groups), [0.0] * len(groups)
    for index, category in enumerate(categories):
        heights, bottoms = [], []
        for place, group in enumerate(groups):
            value = float(section.bars[group].get(category, 0))
            value = value if abs(value) < _LARGEST_DRAWN else 0.0
            stack = above if value >= 0 else below
            heights.append(value)
            bottoms.append(stack[place])
            stack[place] += value
        axes.bar(
            range(len(groups)),
            heights,
            bottom=bottoms,
            width=0.6,
            color=_PALETTE[index % len(_PALETTE)][0],
            hatch=("", "///", "...", "xxx")[index // len(_PALETTE) % 4],
            edgecolor=_PAPER,
            linewidth=0.8,
            label=_clip(category, 60),
        )
    axes.grid(axis="y", linewidth=0.8)
    axes.set_ylabel(section.y_label)
    if not groups or not categories:
        _say_no_data(axes)
        return
    for place, group in enumerate(groups):
        total = sum(value for value in section.bars[group].values() if abs(value) < _LARGEST_DRAWN)
        axes.annotate(
            format_number(float(total)),
            (place, above[place]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
        )
    # Names stand level while they fit, because slanted text is hard to read.
    room = max(8, 84 // len(groups))
    wrapped = [textwrap.fill(_clip(group, 48), room, break_on_hyphens=False) for group in groups]
    if len(groups) <= 8:
        axes.set_xticks(range(len(groups)), wrapped)
    else:
        names = [_clip(group, 32) for group in groups]
        axes.set_xticks(range(len(groups)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, max(len(groups), 2) - 0.4)
    axes.yaxis.set_major_formatter(_tick_formatter([*above, *below]))
    axes.margins(y=0.1)
    if any(below):
        axes.axhline(0, color=_INK, linewidth=0.8)


def _tick_formatter(values: Sequence[Number]) -> Any:
    """Label ticks in plain numbers, from ten thousand on with k, M, G; never with a factor beside the axis."""
    from matplotlib.ticker import EngFormatter, FuncFormatter

    if 1e4 <= max(abs(value) for value in values) < 1e13:
        return EngFormatter(sep="")
    return FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", "\N{MINUS SIGN}"))


def _add_legend(axes: "Axes") -> int:
    """Put the names in rows above the picture, where they hide no curve; return the number of rows."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return 0
    # About 100 characters fit side by side; a name's line or box takes as much room as six.
    is_one_row = sum(len(label) + 6 for label in labels) <= 100
    columns = len(labels) if is_one_row else max(1, 95 // (max(map(len, labels)) + 6))
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
        borderpad=0.2,
        ncols=columns,
        frameon=False,
        handlelength=1.6,
    )
    return math.ceil(len(labels) / columns)


def _say_no_data(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", fontsize=14)


def _clip(text: str, length: int) -> str:
    """Shorten a name, and keep matplotlib from hiding one that begins with an underscore."""
    text = " ".join(text.split())
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return f" {text}" if text.startswith("_") else text


# ---- page -----------------------------------------------------------------------------------------------------------


def _page(report: Report) -> str:
    sections = "\n".join(_page_section(section) for section in report.sections) or "<p>This report is empty.</p>"
    light = "".join(f"--series-{i}:{color};" for i, (color, _) in enumerate(_PALETTE))
    dark = "".join(f"--series-{i}:{color};" for i, (_, color) in enumerate(_PALETTE))
    title = html.escape(report.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink:{_INK}; --grid:{_GRID}; --paper:{_PAPER}; --back:#f5f6f8; --soft:#5b636e;
  {light} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink:#e6e9ed; --grid:#3a4049; --paper:#1b1f24; --back:#121519; --soft:#9aa4b0; {dark} }}
}}
{_STYLE}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{sections}
</main>
</body>
</html>
"""


_STYLE = """* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1.5rem; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; }
section { background: var(--paper); border: 1px solid var(--grid); border-radius: .75rem; padding: 1.25rem;
  margin-bottom: 1.25rem; }
p { margin: 0; white-space: pre-line; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
.table { min-width: 50%; }
th { color: var(--soft); font-weight: 600; text-align: left; vertical-align: bottom;
  border-bottom: 2px solid var(--grid); }
th, td { padding: .4rem 1rem .4rem 0; }
tr + tr td { border-top: 1px solid var(--grid); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.name { color: var(--soft); white-space: nowrap; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
details { margin-top: .75rem; }
summary { color: var(--soft); cursor: pointer; font-size: .85rem; }
.empty { color: var(--soft); }
@media print { body { background: none; } section { break-inside: avoid; } }"""


def _page_section(section: Section) -> str:
    heading = f"<h2>{html.escape(section.title)}</h2>"
    if isinstance(section, Note):
        return f"<section>{heading}<p>{html.escape(section.text)}</p></section>"
    body = _page_table(_as_table(section), has_header=not isinstance(section, Facts))
    if isinstance(section, Curves | Bars):
        label = html.escape(f"{section.title}: {section.y_label}", quote=True)
        body = (
            f'<figure role="img" aria-label="{label}">{_inline_svg(section)}</figure>'
            f"<details><summary>Numbers</summary>{body}</details>"
        )
    return f"<section>{heading}{body}</section>"


def _page_table(table: Table, has_header: bool) -> str:
    if not table.rows or not table.columns:
        return '<p class="empty">no data</p>'
    columns = list(zip(*table.rows, strict=True))
    classes = ["number" if _is_numeric(column) else "" for column in columns]
    if not has_header:
        classes = ["name", ""]
    texts = [_format_column(column) for column in columns]
    head = "".join(
        f'<th class="{kind}">{html.escape(name)}</th>' for name, kind in zip(table.columns, classes, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{html.escape(text)}</td>' for text, kind in zip(row, classes, strict=True))
        + "</tr>"
        for row in zip(*texts, strict=True)
    )
    header = f"<thead><tr>{head}</tr></thead>" if has_header else ""
    return f'<div class="scroll"><table class="table">{header}<tbody>{rows}</tbody></table></div>'


def _inline_svg(section: Curves | Bars) -> str:
    """Draw a section as SVG whose colours are the page's variables, so that one picture fits both themes."""
    text = _picture(section, "svg").decode()
    text = re.sub("<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # A page may hold an id once, and every picture of matplotlib has an "axes_1".
    prefix = f"p{zlib.crc32(section.title.encode()):08x}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    for color, variable in (
        (_INK, "ink"),
        (_GRID, "grid"),
        (_PAPER, "paper"),
        *((light, f"series-{i}") for i, (light, _) in enumerate(_PALETTE)),
    ):
        text = text.replace(color, f"var(--{variable})")
    return text
