"""A table as CSV text that spreadsheets and pandas read: all digits, a header, no value for what is not there."""

import csv
import io

from featherweight.report.sections import Table


def csv_text(table: Table) -> str:
    r"""Return the text of a table.

    Example:
        >>> csv_text(Table("Runs", ["run", "loss"], [["first", 0.5], ["second, longer", None]]))
        'run,loss\r\nfirst,0.5\r\n"second, longer",\r\n'
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return buffer.getvalue()
