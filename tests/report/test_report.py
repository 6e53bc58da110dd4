import pytest

from featherweight.errors import ConfigError
from featherweight.report import Report


def test_rows_and_curves_that_do_not_fit_are_refused():
    report = Report("Wrong")

    with pytest.raises(ConfigError, match="row 1 has cells=1.*expected 2"):
        report.add_table("T", ["a", "b"], [[1, 2], [1]])
    with pytest.raises(ConfigError, match="'adamw' has 2 xs and ys=1"):
        report.add_curves("C", "x", "y", {"adamw": ([1, 2], [1])})
    assert report.sections == []
