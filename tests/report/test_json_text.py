import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from featherweight.errors import ConfigError
from featherweight.report import Report


def text_of(report, width=100):
    console = Console(width=width, color_system=None, _environ={})
    with console.capture() as capture:
        report.print_terminal(console)
    return capture.get()


def test_json_round_trip_is_exact(report, awkward_report):
    for one in (report, awkward_report):
        text = one.to_json()
        again = Report.from_json(text)

        assert again.to_json() == text
        assert repr(again) == repr(one)  # repr, because NaN differs from itself
    assert Report.from_json(report.to_json()) == report


@given(
    rows=st.lists(st.lists(st.floats() | st.integers() | st.text() | st.booleans() | st.none(), min_size=2, max_size=2))
)
@settings(derandomize=True, max_examples=50, deadline=None)
def test_any_cell_survives_json_and_the_terminal(rows):
    report = Report("Any")
    report.add_table("Cells", ["a", "b"], rows)

    assert repr(Report.from_json(report.to_json())) == repr(report)
    assert text_of(report)


def test_json_is_readable_by_strict_readers(awkward_report):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    json.loads(awkward_report.to_json(), parse_constant=refuse)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"title": "a", "sections": [{"kind": "pie"}]}', '{"title": "a", "sections": 3}']
)
def test_text_that_is_no_report_is_refused(text):
    with pytest.raises(ConfigError, match="holds no report"):
        Report.from_json(text)
