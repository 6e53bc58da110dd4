import json
import math
import re
import xml.dom.minidom
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from featherweight.errors import ConfigError
from featherweight.report import Report, format_bytes, format_number


@pytest.fixture
def report():
    report = Report("Two methods")
    report.add_table(
        "Results", ["method", "loss (nats/token)", "tokens"], [["adamw", 2.5, 65536], ["galore", 2.75, None]]
    )
    report.add_curves("Loss", "tokens", "loss (nats/token)", {"adamw": ([0, 512], [3.5, 2.5]), "galore": ([0], [3.5])})
    report.add_bars("Memory", "memory (MiB)", {"adamw": {"weights": 10, "state": 20}, "galore": {"weights": 10.5}})
    report.add_facts({"machine": "2 cores", "seed": 0, "compiled": False})
    report.add_note("Reproduce with fw compare.")
    return report


@pytest.fixture
def awkward_report():
    """Everything that must not crash: nothing, nonsense numbers, nonsense names."""
    report = Report("<b>Awkward</b> [red]title[/red]")
    report.add_table("No rows", ["a"], [])
    report.add_table("No columns", [], [[], []])
    report.add_table(
        "Nonsense", ["x"], [[math.nan], [-math.inf], [None], ["<script>alert(1)</script>"], [1e300], [True]]
    )
    report.add_curves("No curves", "x", "y", {})
    report.add_curves("Empty curve", "x", "y", {"a": ([], [])})
    report.add_curves("Only NaN", "x", "y", {"a": ([1, 2], [math.nan, math.inf])}, log_y=True)
    report.add_curves("Nothing positive", "x", "y", {"a": ([1, 2], [0, -1])}, log_y=True)
    report.add_curves("One point", "x", "y", {"_hidden $x_{": ([1], [1.0])}, log_y=True)
    report.add_curves(
        "Huge", "x", "y", {"中文 📈": ([1, 2, math.nan], [1e308, -1e308, 1]), "b": ([1, 2], [1e90, -1e90])}
    )
    report.add_curves("Constant", "x", "y", {f"curve {i}": ([1, 2], [0.1, 0.1]) for i in range(20)})
    report.add_bars("No bars", "y", {})
    report.add_bars("No categories", "y", {"a": {}})
    report.add_bars("Nonsense bars", "y", {"a": {"x": math.nan, "y": -1}, "b": {"z": math.inf}, "_c": {}})
    report.add_bars("Many", "y", {f"group of some length {i}": {f"c{j}": i + j for j in range(9)} for i in range(12)})
    report.add_facts({})
    report.add_note("")
    return report


def text_of(report, width=100):
    console = Console(width=width, color_system=None, _environ={})
    with console.capture() as capture:
        report.print_terminal(console)
    return capture.get()


class TagChecker(HTMLParser):
    """Fails on tags that are not closed in order, and collects the names of all tags."""

    VOID = {"meta", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


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


def test_numbers_of_numpy_and_torch_become_plain():
    report = Report("Plain")
    report.add_table("T", ["a"], [[np.float32(0.5)], [torch.tensor(3)], [np.bool_(True)]])
    report.add_curves("C", "x", "y", {"a": (np.arange(2), torch.tensor([0.5, 1.5]))})

    assert [type(row[0]) for row in report.section("T").rows] == [float, int, bool]
    assert report.section("C").curves == {"a": [[0, 1], [0.5, 1.5]]}
    assert Report.from_json(report.to_json()) == report


def test_rows_and_curves_that_do_not_fit_are_refused():
    report = Report("Wrong")

    with pytest.raises(ConfigError, match="row 1 has cells=1.*expected 2"):
        report.add_table("T", ["a", "b"], [[1, 2], [1]])
    with pytest.raises(ConfigError, match="'adamw' has 2 xs and ys=1"):
        report.add_curves("C", "x", "y", {"adamw": ([1, 2], [1])})
    assert report.sections == []


def test_terminal_shows_every_number_of_a_table_at_any_width(report):
    report.add_table(
        "Wide", [f"quantity {i} (unit)" for i in range(12)], [[f"name{i}" if i == 0 else 1111 * i for i in range(12)]]
    )

    for width in (30, 60, 200):
        text = text_of(report, width)
        assert all(f"{1111 * i:,}" in text for i in range(1, 12)), width
        assert max(map(len, text.splitlines())) <= width


def test_terminal_sums_up_curves_and_bars(report):
    lines = text_of(report, 140).splitlines()

    curve = next(line for line in lines if line.startswith("adamw") and "█" in line)
    assert curve.split() == ["adamw", "512", "3.500", "2.500", "2.500", "2", "█▁"]
    bars = next(line for line in lines if line.startswith("adamw") and line.split()[-1].startswith("30"))
    assert bars.split()[1] == "10.00"  # the other group's 10.5 needs decimals, so both have them


def test_a_loss_keeps_its_digits_beside_a_perplexity_and_a_count_of_tokens():
    report = Report("run")
    rows = [["held-out loss", 10.86, 10.85], ["perplexity", 52163.2, 51520.7], ["tokens", 499, 499]]
    report.add_table("Result", ["metric", "before", "after"], rows)
    report.add_table("Small", ["metric", "value"], [["loss", 5.602], ["perplexity", 271.04]])
    text = text_of(report)
    for cell in ("10.86", "10.85", "52,163", "499", "5.60", "271.04"):
        assert cell in text.split()


def test_terminal_prints_markup_of_names_as_it_is(awkward_report):
    text = text_of(awkward_report)

    assert "[red]title[/red]" in text
    assert "<script>alert(1)</script>" in text


def test_terminal_that_knows_only_ascii_is_served(report, tmp_path):
    with open(tmp_path / "out.txt", "w", encoding="ascii") as file:
        report.print_terminal(Console(file=file, width=100))

    assert "adamw" in (tmp_path / "out.txt").read_text()


def test_print_of_a_report_is_its_plain_text(report):
    assert str(report).splitlines()[0] == "Two methods"
    assert "\x1b" not in str(report)


def test_page_is_well_formed_and_needs_nothing_from_outside(report, awkward_report, tmp_path):
    for one in (report, awkward_report):
        one.save_html(tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text(encoding="utf-8")

        checker = TagChecker()
        checker.feed(page)
        assert checker.open == []
        assert not checker.seen & {"script", "link", "img", "iframe"}
        assert "url(http" not in page and "@import" not in page
    assert "&lt;b&gt;Awkward&lt;/b&gt;" in page


def test_page_holds_one_picture_per_curves_and_bars_in_colours_of_the_theme(report, tmp_path):
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    pictures = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 2
    for picture in pictures:
        xml.dom.minidom.parseString(picture)
        assert "var(--series-0)" in picture and "var(--ink)" in picture
        assert "#1f2328" not in picture  # ink of the light theme would vanish on the dark one
    assert "prefers-color-scheme: dark" in page


def test_ids_stand_once_on_a_page_and_every_reference_finds_its_own(report, tmp_path):
    report.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    pictures = re.findall("<svg.*?</svg>", page, re.DOTALL)
    ids = [set(re.findall(r'\bid="([^"]+)"', picture)) for picture in pictures]
    assert len(set.union(*ids)) == sum(map(len, ids)) == page.count(' id="')
    for picture, own in zip(pictures, ids, strict=True):
        references = set(re.findall(r'href="#([^"]+)"', picture)) | set(re.findall(r"url\(#([^)]+)\)", picture))
        assert references and references <= own


def test_equal_reports_give_equal_pages(report, tmp_path):
    report.save_html(tmp_path / "a.html")
    report.save_html(tmp_path / "b.html")

    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_every_picture_of_an_awkward_report_is_drawn_without_a_warning(awkward_report, tmp_path):
    # Warnings are errors in this suite; matplotlib warns of missing glyphs, hidden labels and logarithms of zero.
    for section in awkward_report.sections:
        if section.kind in ("curves", "bars"):
            awkward_report.save_picture(tmp_path / "picture.png", section.title)


def test_picture_is_a_png_of_1440_pixels_that_shows_something(report, tmp_path):
    from matplotlib import image

    for title in ("Loss", "Memory"):
        report.save_picture(tmp_path / "new" / "picture.png", title)
        pixels = image.imread(tmp_path / "new" / "picture.png")

        assert pixels.shape[:2] == (720, 1440)
        blue = np.array([0x00, 0x72, 0xB2]) / 255
        # The first series is blue; half a level of 8 bits is the rounding of the file format.
        assert (np.abs(pixels[..., :3] - blue).max(axis=-1) <= 0.5 / 255).sum() > 100


def test_picture_of_an_unknown_or_pictureless_section_is_refused(report, tmp_path):
    with pytest.raises(ConfigError, match="section='Los' is unknown.*Did you mean 'Loss'"):
        report.save_picture(tmp_path / "a.png", "Los")
    with pytest.raises(ConfigError, match="is a table and has no picture.*Choose one of: Loss, Memory"):
        report.save_picture(tmp_path / "a.png", "Results")
    with pytest.raises(ConfigError, match="Add sections first"):
        Report("Empty").save_picture(tmp_path / "a.png", "Loss")
    assert list(tmp_path.iterdir()) == []


def test_page_that_cannot_be_written_is_one_clear_sentence(report, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot be written"):
        report.save_html(tmp_path / "file" / "report.html")


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were(report, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    report.save_picture(tmp_path / "a.png", "Loss")

    assert dict(matplotlib.rcParams) == before
