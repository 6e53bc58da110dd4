"""The report of a calibration, as far as it is more than the numbers of `test_metrics`."""

import torch

from featherweight.guard.quality import _add_categories
from featherweight.guard.splits import Rows
from featherweight.report import Report


def test_categories_with_few_rows_share_a_line_and_no_row_is_lost():
    rows, report = Rows(), Report("Guard")
    for category, count in (("many", 7), ("few", 2), ("one", 1)):
        for index in range(count):
            rows.add([], f"{category} {index}", "harmful", "test", category)
    rows.add([], "plain", "benign", "test", "")
    flagged = torch.tensor([True] * 6 + [False] + [True, False, True] + [False])
    _add_categories(report, flagged, rows)
    found = report.section("Categories").rows
    assert [row[:4] for row in found] == [["harmful", "many", 7, 6], ["harmful", "2 with fewer than 5 rows", 3, 2]]
