"""A report as one self-contained HTML page, which follows the reader's light or dark theme."""

import html
import re
import zlib
from collections.abc import Sequence

from featherweight.report.formatting import format_column, format_facts, stands_right
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
td { vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.none { text-align: right; }
.name { color: var(--soft); white-space: nowrap; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
.value { overflow-wrap: anywhere; min-width: 8rem; }
@media (max-width: 640px) {
  main { padding: 1.25rem .75rem 3rem; }
  h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
  section { padding: 1rem; border-radius: .6rem; }
  .name { white-space: normal; }
  .cards thead { display: none; }
  .cards, .cards tbody, .cards tr, .cards td { display: block; }
  .cards tr { padding: .5rem 0; border-top: 1px solid var(--grid); }
  .cards tr:first-child { border-top: 0; }
  .cards td { display: flex; justify-content: space-between; gap: 1rem; padding: .15rem 0; border: 0;
    text-align: right; overflow-wrap: anywhere; }
  .cards td:first-child { font-weight: 600; text-align: left; }
  .cards td:not(:first-child)::before { content: attr(data-label); color: var(--soft); text-align: left;
    white-space: normal; }
  .cards td.number:first-child::before { content: attr(data-label); }
  .cards td.none { display: none; }
  .facts, .facts tbody { display: block; }
  .facts tr { display: grid; grid-template-columns: minmax(0, 1.2fr) minmax(0, 1fr); }
  .facts .name { overflow-wrap: anywhere; }
  .facts tr.long { grid-template-columns: minmax(0, 1fr); }
  .facts tr + tr { border-top: 1px solid var(--grid); }
  .facts td { border: 0; }
  .facts tr.long .value { padding-top: 0; }
  .wide { display: none; }
  .narrow { display: block; }
}
details { margin-top: .75rem; }
summary { color: var(--soft); cursor: pointer; font-size: .85rem; }
.empty { color: var(--soft); }
@media print { body { background: none; } section { break-inside: avoid; } }"""


LONG = 60
"""Characters of a fact from which a phone shows it below its name, in the whole width."""


def _page_section(section: Section) -> str:
    heading = f"<h2>{html.escape(section.title)}</h2>"
    if isinstance(section, Note):
        return f"<section>{heading}<p>{html.escape(section.text)}</p></section>"
    body = _page_facts(section) if isinstance(section, Facts) else _page_table(as_table(section))
    if isinstance(section, Curves | Bars):
        label = html.escape(f"{section.title}: {section.y_label}", quote=True)
        body = (
            f'<figure class="wide" role="img" aria-label="{label}">{_inline_svg(section, is_narrow=False)}</figure>'
            f'<figure class="narrow" role="img" aria-label="{label}">{_inline_svg(section, is_narrow=True)}</figure>'
            f"<details><summary>Numbers</summary>{body}</details>"
        )
    return f"<section>{heading}{body}</section>"


def _page_facts(section: Facts) -> str:
    if not section.facts:
        return '<p class="empty">no data</p>'
    pairs = zip(section.facts, format_facts(section.facts), strict=True)
    rows = "".join(
        f'<tr{" class=long" if len(text) > LONG else ""}><td class="name">{html.escape(name)}</td>'
        f'<td class="value">{html.escape(text)}</td></tr>'
        for name, text in pairs
    )
    return f'<div class="scroll"><table class="table facts"><tbody>{rows}</tbody></table></div>'


def _page_table(table: Table) -> str:
    if not table.rows or not table.columns:
        return '<p class="empty">no data</p>'
    columns = list(zip(*table.rows, strict=True))
    classes = ["number" if stands_right(column) else "" for column in columns]
    texts = [format_column(column, name) for name, column in zip(table.columns, columns, strict=True)]
    head = "".join(
        f'<th class="{kind}">{html.escape(name)}</th>' for name, kind in zip(table.columns, classes, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"none" if text == "-" else kind}" data-label="{html.escape(name, quote=True)}">'
            f"{html.escape(text)}</td>"
            for text, kind, name in zip(row, classes, table.columns, strict=True)
        )
        + "</tr>"
        for row in zip(*texts, strict=True)
    )
    # On a telephone a few wide rows become cards; a long table stays one, which is moved sideways.
    shape = "table cards" if len(columns) > 3 and len(table.rows) <= 12 else "table"
    return (
        f'<div class="scroll"><table class="{shape}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _inline_svg(section: Curves | Bars, is_narrow: bool) -> str:
    """Draw a section as SVG whose colours are the page's variables, so that one picture fits both themes."""
    text = draw_picture(section, "svg", is_narrow=is_narrow).decode()
    text = re.sub("<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # A page may hold an id once, and every picture of matplotlib has an "axes_1".
    prefix = f"{'n' if is_narrow else 'p'}{zlib.crc32(section.title.encode()):08x}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    for color, variable in (
        (INK, "ink"),
        (GRID, "grid"),
        (PAPER, "paper"),
        *((light, f"series-{i}") for i, (light, _) in enumerate(PALETTE)),
    ):
        text = text.replace(color, f"var(--{variable})")
    return text
