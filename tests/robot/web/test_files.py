"""The files of the page, and who may use them."""

import re

import pytest

from featherweight.robot.web.files import HEADERS, is_own_host, read_page

OWN = frozenset({"127.0.0.1", "localhost"})


def test_every_file_that_the_page_names_is_there_and_nothing_comes_from_elsewhere():
    files = read_page()
    texts = {name: data.decode() for name, (_, data) in files.items()}
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', texts[""]))
    for name, text in texts.items():
        named |= {target.removeprefix("./") for target in re.findall(r'from "([^"]+)"', text)}
        # The one address that is no request: the name space of SVG.
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], name
        assert "<style" not in text and " style=" not in text and " onclick" not in text, name
    assert named == set(files) - {""}
    assert "default-src 'none'" in HEADERS["Content-Security-Policy"]


def test_no_file_of_the_page_is_longer_than_450_lines():
    assert all(data.count(b"\n") <= 450 for _, data in read_page().values())


@pytest.mark.parametrize(
    ("headers", "is_own"),
    [
        ({"Host": "127.0.0.1:8765"}, True),
        ({"Host": "localhost:8765", "Origin": "http://localhost:8765"}, True),
        ({"Host": "evil.example:8765"}, False),
        ({"Host": "127.0.0.1:8765", "Origin": "http://evil.example"}, False),
        ({"Host": "127.0.0.1:8765", "Origin": "http://127.0.0.1:9999"}, False),
        ({}, False),
    ],
)
def test_requests_of_other_pages_are_told_apart(headers, is_own):
    assert is_own_host(headers, OWN) == is_own
