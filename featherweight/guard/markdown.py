"""A report as Markdown, beside the page: for reviews, issues and terminals."""

from featherweight.report import Report
from featherweight.report.formatting import format_column, format_facts
from featherweight.report.sections import Facts, Note, Table


def markdown_report(report: Report) -> str:
    """Return tables, facts and notes; pictures stand on the page alone.

    Example:
        >>> report = Report("Guard")
        >>> report.add_table("Rates", ["rows", "count"], [["benign", 3]])
        >>> print(markdown_report(report))
        # Guard
        <BLANKLINE>
        ## Rates
        <BLANKLINE>
        | rows | count |
        |---|---|
        | benign | 3 |
        <BLANKLINE>
    """
    parts = [f"# {report.title}\n"]
    for section in report.sections:
        if isinstance(section, Note):
            parts.append(f"## {section.title}\n\n{section.text}\n")
        elif isinstance(section, Facts):
            pairs = zip(section.facts, format_facts(section.facts), strict=True)
            parts.append(f"## {section.title}\n\n" + "\n".join(f"- {name}: {value}" for name, value in pairs) + "\n")
        elif isinstance(section, Table):
            columns = [[row[place] for row in section.rows] for place in range(len(section.columns))]
            texts = [format_column(one, name) for one, name in zip(columns, section.columns, strict=True)]
            lines = [list(section.columns), *([text[row] for text in texts] for row in range(len(section.rows)))]
            shown = ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]
            shown.insert(1, "|" + "---|" * len(section.columns))
            parts.append(f"## {section.title}\n\n" + "\n".join(shown) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
