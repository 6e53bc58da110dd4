"""A log that was changed is noticed."""

import json

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.challenge.log import read_log, write_log

RECORDS = [{"kind": "start", "cubes": 1}, {"kind": "frame", "t": 0.5}, {"kind": "frame", "t": 1.0}, {"kind": "end"}]


def test_a_log_comes_back_as_it_was(tmp_path):
    write_log(tmp_path / "log.jsonl", RECORDS)
    assert read_log(tmp_path / "log.jsonl") == RECORDS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[1].replace("0.5", "0.4"), *lines[2:]], "line=2 .* was changed"),
        (lambda lines: [lines[0], *lines[2:]], "line=2 .* was changed"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line=2 .* was changed"),
        (lambda lines: lines[:-1], "has no start or no end"),
        (lambda lines: [*lines[:2], "{", *lines[2:]], "line=3 .* is no record"),
        (lambda lines: [*lines[:1], json.dumps({"kind": "frame"}), *lines[1:]], "line=2 .* is no record"),
        (lambda lines: [], "has no start or no end"),
    ],
)
def test_tampering_with_one_line_is_detected(tmp_path, change, message):
    path = tmp_path / "log.jsonl"
    write_log(path, RECORDS)
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(ConfigError, match=message):
        read_log(path)


def test_a_missing_log_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_log(tmp_path / "nothing")
