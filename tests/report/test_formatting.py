import math

import pytest
from rich.console import Console

from featherweight.report import Report, format_bytes, format_number


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
