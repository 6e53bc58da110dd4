import math

import pytest
from rich.console import Console

from featherweight.report import Report, format_bytes, format_number
from featherweight.report.formatting import format_column, format_facts, is_share, stands_right


def text_of(report, width=100):
    console = Console(width=width, color_system=None, _environ={})
    with console.capture() as capture:
        report.print_terminal(console)
    return capture.get()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1024**2 - 1, "1.00 MiB"),
        (1.5 * 1024**3, "1.50 GiB"),
        (2048 * 1024**4, "2048.00 TiB"),
        (-1024, "-1.00 KiB"),
        (math.nan, "nan B"),
    ],
)
def test_bytes_are_written_in_the_largest_binary_unit(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (1234.5678, "1,235"),
        (0.00012345, "0.0001234"),
        (1e12, "1e+12"),
        (-math.inf, "-inf"),
        (0.0, "0"),
    ],
)
def test_numbers_are_written_with_four_digits_or_in_full_if_whole(value, text):
    assert format_number(value) == text


def test_a_loss_keeps_its_digits_beside_a_perplexity_and_a_count_of_tokens():
    report = Report("run")
    rows = [["held-out loss", 10.86, 10.85], ["perplexity", 52163.2, 51520.7], ["tokens", 499, 499]]
    report.add_table("Result", ["metric", "before", "after"], rows)
    report.add_table("Small", ["metric", "value"], [["loss", 5.602], ["perplexity", 271.04]])
    text = text_of(report)
    for cell in ("10.86", "10.85", "52,163", "499", "5.60", "271.04"):
        assert cell in text.split()


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([513.13, 1026.27, 0.01, 0.0, None], ["513.13", "1,026.27", "0.01", "0.00", "-"]),
        ([2.778, 2.44], ["2.778", "2.440"]),
        ([257.3, 0.125], ["257.3", "0.1"]),
        ([3.0, 1024.0], ["3", "1,024"]),
        ([499, 10.86, 52163.2], ["499", "10.86", "52,163"]),
    ],
)
def test_the_numbers_of_a_column_have_equal_decimals_unless_they_are_unlike_things(values, texts):
    assert format_column(values) == texts


def test_shares_are_percentages_wherever_they_are_reported():
    assert format_column([0.8754, None, 1.0], "accuracy") == ["87.5 %", "-", "100.0 %"]
    assert format_column([0.0004, 0.5], "share of the budget") == ["0.04 %", "50.00 %"]
    assert format_facts({"parameters kept": 0.5, "steps": 3, "model": "tiny"}) == ["50.0 %", "3", "tiny"]
    assert not is_share("accuracy", [17.0]) and not is_share("loss", [0.5]) and not is_share("accuracy", ["high"])
    report = Report("r")
    report.add_table("t", ["weights", "accuracy"], [["before", 0.25], ["after", 0.5]])
    report.add_facts({"bytes kept": 0.125})
    assert {"25.0", "50.0", "12.5", "%"} <= set(text_of(report).split())
    assert report.section("t").rows[0][1] == 0.25  # as a number in JSON


def test_pairs_of_numbers_line_up_at_their_right_as_numbers_do():
    assert stands_right(["513 / 513", "1,026 / 1,026", None]) and stands_right([1, 2.5])
    assert not stands_right(["513 MiB"]) and not stands_right([None])
