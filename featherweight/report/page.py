"""A report as one self-contained HTML page, which follows the reader's light or dark theme."""

import html
import re
import zlib
from collections.abc import Sequence

from featherweight.report.formatting import format_column, is_numeric
from featherweight.report.pictures import GRID, INK, PALETTE, PAPER, draw_picture
from featherweight.report.sections import Bars, Curves, Facts, Note, Section, Table, as_table


def html_page(title: str, sections: Sequence[Section]) -> str:
    """Return the page of a report."""
    body = "\n".join(_page_section(section) for section in sections) or "<p>This report is empty.</p>"
    light = "".join(f"--series-{i}:{color};" for i, (color, _) in enumerate(PALETTE))
    dark = "".join(f"--series-{i}:{color};" for i, (_, color) in enumerate(PALETTE))
    title = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink:{INK}; --grid:{GRID}; --paper:{PAPER}; --back:#f5f6f8; --soft:#5b636e;
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
{body}
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
    body = _page_table(as_table(section), has_header=not isinstance(section, Facts))
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
    classes = ["number" if is_numeric(column) else "" for column in columns]
    if not has_header:
        classes = ["name", ""]
    texts = [format_column(column) for column in columns]
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
    text = draw_picture(section, "svg").decode()
    text = re.sub("<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # A page may hold an id once, and every picture of matplotlib has an "axes_1".
    prefix = f"p{zlib.crc32(section.title.encode()):08x}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    for color, variable in (
        (INK, "ink"),
        (GRID, "grid"),
        (PAPER, "paper"),
        *((light, f"series-{i}") for i, (light, _) in enumerate(PALETTE)),
    ):
        text = text.replace(color, f"var(--{variable})")
    return text
