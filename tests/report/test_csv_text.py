import csv

import pytest

from featherweight.errors import ConfigError
from featherweight.report import Report


def test_a_table_as_csv_has_all_digits_and_no_value_where_none_is(tmp_path):
    report = Report("r")
    report.add_note("first")
    report.add_table("Runs", ["run", "loss, mean"], [["a, b", 1 / 3], ['"c"', None]])
    report.add_curves("Curve", "x", "y", {"one": ([1, 2], [0.5, 0.25])})
    report.save_csv(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        assert list(csv.reader(file)) == [["run", "loss, mean"], ["a, b", str(1 / 3)], ['"c"', ""]]
    report.save_csv(tmp_path / "c.csv", "Curve")
    assert (tmp_path / "c.csv").read_text().startswith("curve,last x,first y")
    with pytest.raises(ConfigError, match="section='Note' is a note and has no numbers"):
        report.save_csv(tmp_path / "n.csv", "Note")
