"""Reports: what a run, a measurement or a comparison has to say, for a terminal, a program, a browser and a paper.

A `Report` is a title and a list of sections. It holds plain numbers and text only, so it survives JSON exactly,
including NaN and infinity. What draws it (rich, matplotlib) is imported when it is drawn.
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from featherweight.config.files import write_atomically
from featherweight.errors import ConfigError, did_you_mean
from featherweight.report import json_text
from featherweight.report.csv_text import csv_text
from featherweight.report.sections import (
    Bars,
    Curves,
    Facts,
    Note,
    Section,
    Table,
    as_table,
    plain_cell,
    plain_number,
)

if TYPE_CHECKING:
    from rich.console import Console


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
        stored = [[plain_cell(value) for value in row] for row in rows]
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
        stored = {
            str(name): [[plain_number(x) for x in xs], [plain_number(y) for y in ys]]
            for name, (xs, ys) in curves.items()
        }
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
            str(group): {str(name): plain_number(value) for name, value in values.items()}
            for group, values in bars.items()
        }
        self.sections.append(Bars(title, y_label, stored))

    def add_facts(self, facts: Mapping[str, Any], title: str = "Facts") -> None:
        """Add names with one value each, such as the machine and the versions of a run."""
        self.sections.append(Facts(title, {str(name): plain_cell(value) for name, value in facts.items()}))

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

    def print_terminal(self, console: "Console | None" = None) -> None:
        """Print the report as tables; curves and bars are summed up in numbers.

        Args:
            console: where to print; default: standard output.
        """
        from rich.console import Console
        from rich.text import Text

        from featherweight.report.terminal import terminal_section

        console = console or Console()
        # Old terminals that cannot show these characters would stop the program.
        can_draw = console.encoding.lower().startswith("utf")
        console.print(Text(self.title, style="bold"))
        for section in self.sections:
            console.print()
            console.print(terminal_section(section, console.width, can_draw))

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=160, color_system=None, force_terminal=False, _environ={})
        with console.capture() as capture:
            self.print_terminal(console)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def to_json(self) -> str:
        """Return the report as JSON text; numbers that JSON does not know become `{"non_finite": "nan"}`."""
        return json_text.to_json(self.title, self.sections)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the report that `to_json` wrote, equal in every number.

        Raises:
            ConfigError: if the text is no JSON or no report.
        """
        return cls(*json_text.from_json(text))

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page with all tables and pictures; it follows the reader's light or dark theme.

        Raises:
            ConfigError: if the file cannot be written; an older file then stays as it was.
        """
        from featherweight.report.page import html_page

        write_atomically(path, html_page(self.title, self.sections))

    def save_csv(self, path: str | os.PathLike[str], section_title: str | None = None) -> None:
        """Write the numbers of a section as a CSV file, with all their digits; an empty cell has no value.

        Args:
            path: the file.
            section_title: which section; None takes the first table.

        Raises:
            ConfigError: if no section has this title, it is a note, or the file cannot be written.
        """
        if section_title is None:
            section: Section = next((one for one in self.sections if isinstance(one, Table)), Table("", [], []))
        else:
            section = self.section(section_title)
        if isinstance(section, Note):
            raise ConfigError(
                f"Report '{self.title}': section='{section_title}' is a note and has no numbers; expected another "
                "section. Choose a table."
            )
        write_atomically(path, csv_text(as_table(section)))

    def _repr_html_(self) -> str:
        """Show the page in a notebook, in a frame, so that its style stays its own."""
        import html

        from featherweight.report.page import html_page

        page = html.escape(html_page(self.title, self.sections), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 36rem; border: 0"></iframe>'

    def save_picture(self, path: str | os.PathLike[str], section_title: str) -> None:
        """Write the picture of a section as a PNG file of 1440 pixels width.

        Raises:
            ConfigError: if no section has this title, it has no picture, or the file cannot be written.
        """
        from featherweight.report.pictures import draw_picture

        section = self.section(section_title)
        if not isinstance(section, Curves | Bars):
            titles = [one.title for one in self.sections if isinstance(one, Curves | Bars)]
            raise ConfigError(
                f"Report '{self.title}': section='{section_title}' is a {section.kind} and has no picture; "
                f"expected curves or bars. Choose one of: {', '.join(titles) or 'none here'}."
            )
        write_atomically(path, draw_picture(section, "png"))
