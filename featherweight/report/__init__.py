"""Reports: sections with units, shown in a terminal, stored as JSON, drawn on a page of HTML and in pictures.

One file per concept: `report` (the object that is filled), `sections` (what it holds), `formatting`, `terminal`,
`page`, `pictures`, `json_text`.
"""

from featherweight.report.formatting import Cell, Number, format_bytes, format_number
from featherweight.report.report import Report
from featherweight.report.sections import Bars, Curves, Facts, Note, Section, Table

__all__ = [
    "Bars",
    "Cell",
    "Curves",
    "Facts",
    "Note",
    "Number",
    "Report",
    "Section",
    "Table",
    "format_bytes",
    "format_number",
]
