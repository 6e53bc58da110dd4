"""Pictures of lines for the pages: one line for each row of a table, logarithmic axes with plain numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from featherweight.report.pictures import PALETTE, settings

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def save_lines(
    name: str,
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    labels: tuple[str, str],
    y_ticks: Sequence[int],
    x_ticks: Mapping[float, str] | None = None,
) -> Path:
    """Draw points (x, y) by the name of their line, and return the path of the picture.

    Args:
        name: of docs/images/<name>.png.
        title: above the picture.
        lines: points by name; one alone is a mark.
        labels: of both axes.
        y_ticks: numbers on the logarithmic axis.
        x_ticks: words by place on a logarithmic axis; None for a linear one.
    """
    path = IMAGES / f"{name}.png"
    with matplotlib.rc_context(settings(title)):
        figure = Figure(figsize=(9, 4.2), layout="constrained", dpi=160)
        axes = figure.subplots()
        for number, (line, points) in enumerate(lines.items()):
            style = "o-" if len(points) > 1 else "Ds"[number // len(PALETTE) % 2]
            axes.plot(*zip(*sorted(points), strict=True), style, label=line, color=PALETTE[number % len(PALETTE)][0])
        if x_ticks is not None:
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(x_ticks), list(x_ticks.values()))
        axes.set_yscale("log", base=2)
        axes.set_yticks(list(y_ticks), [f"{tick:,}" for tick in y_ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(title, fontsize=10, fontweight="bold")
        axes.grid(axis="y")
        axes.legend(fontsize=8)
        partial = path.with_suffix(".partial.png")
        figure.savefig(partial)
    partial.replace(path)
    return path
