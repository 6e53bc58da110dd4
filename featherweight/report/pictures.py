"""Pictures of curves and stacked bars: one style, and a palette for a light and a dark page.

Each is drawn for one of two widths, so that its letters stay as large as those of the text around it.

matplotlib is imported when the first picture is drawn.
Source of the palette: Okabe and Ito, Color Universal Design, 2008 (distinguishable with every common colour blindness).
"""

import io
import itertools
import math
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featherweight.report.formatting import Number, format_column, is_share
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
_REST = 6  # the grey of the palette: what is no tensor of ours, or stands for comparison
_OWN_PLACES = {name: place for place, name in enumerate(_CATEGORIES)} | {
    "allocator, workspaces, context": _REST,
    "rest": _REST,
    "budget": _REST + len(PALETTE),  # grey, too, but hatched
}
_ROWS_WITHIN = 4
"""Rows of a legend for which every picture has room; it grows for more."""
_DASHES = ("-", "--", ":", "-.")
# Beyond this, sums and axis margins overflow in matplotlib; such a number means a diverged run anyway.
_LARGEST_DRAWN = 1e100


@dataclass(frozen=True)
class Width:
    """How much room a picture has."""

    size: tuple[float, float]
    """Width and height in inches, at letters of 10 points."""
    letters: int
    """About so many fit side by side."""
    level_names: int
    """So many bars at most have their names level below them."""


_WIDE = Width((9, 4.5), letters=100, level_names=8)
_NARROW = Width((3.8, 3.9), letters=35, level_names=3)  # for a telephone, of 390 points


def settings(seed: str) -> dict[str, Any]:
    """Return the settings of matplotlib that make the style, for a block under `matplotlib.rc_context`.

    Args:
        seed: another one for each picture of a page: equal ids in two of them would make them share clip paths.
    """
    from cycler import cycler

    return {
        "axes.prop_cycle": cycler(color=[light for light, _ in PALETTE]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "legend.frameon": False,
        "grid.linewidth": 0.8,
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
        "svg.hashsalt": seed,
        "svg.fonttype": "path",
    }


def draw_picture(section: Curves | Bars, file_format: str, *, is_narrow: bool = False) -> bytes:
    """Draw a section; a PNG carries its title, an SVG stands under a heading of the page.

    Args:
        section: what to draw.
        file_format: png or svg.
        is_narrow: for a telephone.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width = _NARROW if is_narrow else _WIDE
    with matplotlib.rc_context(settings(section.title)), warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes; the table below the picture shows it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        pad = 0.04 if is_narrow else 0.12  # inches
        layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad)
        figure = Figure(figsize=width.size, dpi=160, layout=layout)
        axes = figure.add_subplot()
        if isinstance(section, Curves):
            _draw_curves(axes, section, width)
        else:
            _draw_bars(axes, section, width)
        legend_rows = _add_legend(axes, width)
        if legend_rows > _ROWS_WITHIN:
            # A long legend must not take the room of the curves.
            figure.set_figheight(width.size[1] + 0.2 * (legend_rows - _ROWS_WITHIN))
        if file_format == "png":
            axes.set_title(_clip(section.title, 80), loc="left", fontweight="bold", pad=12 + 16 * legend_rows)
        buffer = io.BytesIO()
        # A date would make equal reports differ.
        metadata = {"Date": None} if file_format == "svg" else None
        figure.savefig(buffer, format=file_format, metadata=metadata, transparent=file_format == "svg")
    return buffer.getvalue()


def _draw_curves(axes: "Axes", section: Curves, width: Width) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    drawn_x: list[Number] = []
    drawn_y: list[Number] = []
    places = places_in_palette(list(section.curves))
    for index, (name, (xs, ys)) in zip(places, section.curves.items(), strict=True):
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
            label=_clip(name, 60 if width is _WIDE else 34),
        )
    axes.grid(axis="y")
    axes.set_xlabel(_wrapped(section.x_label, width.letters))
    axes.set_ylabel(_wrapped(section.y_label, 40))
    if not drawn_y:
        _say_no_data(axes)
        return
    if section.log_y:
        axes.set_yscale("log")
        decades = math.log10(max(drawn_y)) - math.log10(min(drawn_y))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
    ticks = 8 if width is _WIDE else 5
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=all(isinstance(x, int) for x in drawn_x)))
    axes.xaxis.set_major_formatter(_tick_formatter(drawn_x, section.x_label))
    axes.yaxis.set_major_formatter(_tick_formatter(drawn_y, section.y_label, is_log=section.log_y))
    axes.margins(x=0.02)


def _draw_bars(axes: "Axes", section: Bars, width: Width) -> None:
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
            label=_clip(category, 60 if width is _WIDE else 34),
        )
    axes.grid(axis="y")
    axes.set_ylabel(_wrapped(section.y_label, 40))
    if not groups or not categories:
        _say_no_data(axes)
        return
    totals = [
        sum(float(one) for one in values.values() if abs(one) < _LARGEST_DRAWN) for values in section.bars.values()
    ]
    for place, total in enumerate(format_column(totals, section.y_label)):
        axes.annotate(
            total,
            (place, above[place]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
            fontsize=10 if len(groups) <= width.level_names else 8,
        )
    # Names stand level while they fit, because slanted text is hard to read.
    room = max(8, int(0.8 * width.letters) // len(groups))
    wrapped = [textwrap.fill(_clip(group, 48), room, break_on_hyphens=False) for group in groups]
    if len(groups) <= width.level_names:
        axes.set_xticks(range(len(groups)), wrapped)
    else:
        names = [_clip(group, 32) for group in groups]
        axes.set_xticks(range(len(groups)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, max(len(groups), 2) - 0.4)
    axes.yaxis.set_major_formatter(_tick_formatter([*above, *below], section.y_label))
    axes.margins(y=0.1)
    if any(below):
        axes.axhline(0, color=INK, linewidth=0.8)


def places_in_palette(categories: Sequence[str]) -> list[int]:
    """Return the place of each category in the palette: its own if it is a term of memory, else one that is free.

    Example:
        >>> places_in_palette(["activations", "weights", "cache"])
        [3, 0, 1]
    """
    known = [_OWN_PLACES.get(name.replace("_", " ")) for name in categories]
    free = (place for place in itertools.count() if place not in known)
    return [next(free) if place is None else place for place in known]


def colour_of(category: str, *, is_dark: bool = False) -> str:
    """Return the colour of a term of memory, as pictures and terminals show it; grey for what is none.

    Example:
        >>> colour_of("optimizer_state"), colour_of("weights", is_dark=True)
        ('#009e73', '#4ba3e0')
    """
    return PALETTE[_OWN_PLACES.get(category.replace("_", " "), _REST) % len(PALETTE)][is_dark]


def _tick_formatter(values: Sequence[Number], label: str, *, is_log: bool = False) -> Any:
    """Label ticks in plain numbers of equal decimals, from ten thousand on with k, M, G; shares as percentages."""
    from matplotlib.ticker import EngFormatter, Formatter, PercentFormatter

    if is_share(label, list(values)):
        return PercentFormatter(xmax=1, symbol=" %")
    if 1e4 <= max(abs(value) for value in values) < 1e13:
        return EngFormatter(sep="")

    class Plain(Formatter):
        def __call__(self, value: float, pos: int | None = None) -> str:
            return _plain(value, None)

        def format_ticks(self, values: Sequence[float]) -> list[str]:
            # On a logarithmic axis equal decimals would be a row of zeros, and a huge number has too many digits.
            exact = (n for n in range(7) if all(_is_whole(value, n) for value in values))
            decimals = None if is_log or max(map(abs, values), default=0) > 1e9 else next(exact, None)
            return [_plain(value, decimals) for value in values]

    return Plain()


def _plain(value: float, decimals: int | None) -> str:
    text = f"{value:,.6g}" if decimals is None else f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _is_whole(value: float, decimals: int) -> bool:
    return math.isclose(round(value, decimals), value, rel_tol=1e-6, abs_tol=1e-9)


def _wrapped(text: str, letters: int) -> str:
    return textwrap.fill(_clip(text, 2 * letters), letters)


def _add_legend(axes: "Axes", width: Width) -> int:
    """Put the names in rows above the picture, where they hide no curve; return the number of rows."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return 0
    # A name's line or box takes as much room as six letters.
    is_one_row = sum(len(label) + 6 for label in labels) <= width.letters
    columns = len(labels) if is_one_row else max(1, (width.letters - 5) // (max(map(len, labels)) + 6))
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
