"""Pictures of curves and stacked bars: one style, and a palette for a light and a dark page.

matplotlib is imported when the first picture is drawn.
Source of the palette: Okabe and Ito, Color Universal Design, 2008 (distinguishable with every common colour blindness).
"""

import io
import itertools
import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featherweight.report.formatting import Number, format_number
from featherweight.report.sections import Bars, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes


INK, GRID, PAPER = "#1f2328", "#d8dce1", "#ffffff"
# Okabe and Ito without yellow and black, which vanish on one of the two themes; the second colour is for the dark one.
PALETTE = (
    ("#0072b2", "#4ba3e0"),
    ("#d55e00", "#f08a4b"),
    ("#009e73", "#35c79b"),
    ("#cc79a7", "#e19cc3"),
    ("#e69f00", "#f0b840"),
    ("#56b4e9", "#8fd0f7"),
    ("#7f7f7f", "#a6a6a6"),
)

_CATEGORIES = ("weights", "gradients", "optimizer state", "activations", "temporaries", "inputs", "other", "buffers")
"""Terms of memory, in the order of the palette: each has one colour in all pictures."""
_DASHES = ("-", "--", ":", "-.")
# Beyond this, sums and axis margins overflow in matplotlib; such a number means a diverged run anyway.
_LARGEST_DRAWN = 1e100


def draw_picture(section: Curves | Bars, file_format: str) -> bytes:
    """Draw a section; a PNG carries its title, an SVG stands under a heading of the page."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
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
        figure = Figure(figsize=(9, 4.5), dpi=160, layout=layout, facecolor=PAPER)
        axes = figure.add_subplot(facecolor=PAPER)
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
            color=PALETTE[index % len(PALETTE)][0],
            linestyle=_DASHES[index // len(PALETTE) % len(_DASHES)],
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
    for index, category in zip(places_in_palette(categories), categories, strict=True):
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
            color=PALETTE[index % len(PALETTE)][0],
            hatch=("", "///", "...", "xxx")[index // len(PALETTE) % 4],
            edgecolor=PAPER,
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
        axes.axhline(0, color=INK, linewidth=0.8)


def places_in_palette(categories: Sequence[str]) -> list[int]:
    """Return the place of each category in the palette: its own if it is a term of memory, else one that is free.

    Example:
        >>> places_in_palette(["activations", "weights", "cache"])
        [3, 0, 1]
    """
    own = {name: place for place, name in enumerate(_CATEGORIES)}
    known = [own.get(name.replace("_", " ")) for name in categories]
    free = (place for place in itertools.count() if place not in known)
    return [next(free) if place is None else place for place in known]


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
