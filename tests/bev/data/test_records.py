import json

import pytest

from featherweight.bev.data import records
from featherweight.bev.data.records import iterate_records
from featherweight.errors import CheckpointError

ROWS = [{"token": f"{n:032d}", "text": 'a ] } , \\ " ü' * 3, "values": [n, n / 3]} for n in range(200)]


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_records_come_out_as_they_went_in_whatever_the_chunks(tmp_path, monkeypatch, chunk, indent):
    path = tmp_path / "table.json"
    rows = ROWS[:5] if chunk == 1 else ROWS
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(records, "_CHUNK_CHARACTERS", chunk)
    assert list(iterate_records(path)) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends without"),
        ("{}", "does not begin"),
        ('[{"a": 1}', "ends without"),
        ('[{"a": 1}, {"b": ', "in the middle"),
        ("[1, 2]", "holds int"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        list(iterate_records(path))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        list(iterate_records(tmp_path / "nothing.json"))
