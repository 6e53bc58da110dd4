import re
import xml.dom.minidom
from html.parser import HTMLParser

import pytest

from featherweight.errors import ConfigError


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


def test_page_holds_a_wide_and_a_narrow_picture_per_curves_and_bars_in_colours_of_the_theme(report, tmp_path):
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    pictures = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 4
    assert page.count('class="wide"') == page.count('class="narrow"') == 2
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


def test_page_that_cannot_be_written_is_one_clear_sentence(report, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot be written"):
        report.save_html(tmp_path / "file" / "report.html")


def test_a_wide_table_of_few_rows_becomes_cards_on_a_telephone(report, tmp_path):
    report.add_table("Wide", ["method", "a (MiB)", "b <&>", "c"], [["adamw", 1.5, None, "x"]])
    report.add_table("Long", ["method", "a", "b", "c"], [[str(i), i, i, i] for i in range(13)])
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shapes = dict(re.findall(r'<h2>(Wide|Long)</h2>.*?<table class="([^"]*)"', page))
    assert shapes == {"Wide": "table cards", "Long": "table"} and 'data-label="b &lt;&amp;&gt;"' in page


def test_a_notebook_shows_the_page_in_a_frame(report):
    shown = report._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and "&lt;!DOCTYPE html&gt;" in shown and "<section>" not in shown
