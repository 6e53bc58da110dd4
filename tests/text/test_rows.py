"""Rows come from every kind of file with the place where they stand, and unchanged."""

import bz2
import gzip
import json
import lzma

import pytest

from featherweight.errors import ConfigError
from featherweight.text.rows import read_rows, row_files

ROWS = [{"prompt": f"q{n}\n  é🎉", "completion": f"a{n}"} for n in range(3)]


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", lambda data: data),
        ("a.jsonl.gz", gzip.compress),
        ("a.ndjson.bz2", bz2.compress),
        ("a.jsonl.xz", lzma.compress),
    ],
)
def test_json_lines_compressed_or_not(tmp_path, name, pack):
    path = tmp_path / name
    path.write_bytes(pack(("\ufeff" + lines()).encode()))
    assert list(read_rows(str(path))) == [(f"{name}, line {n}", row) for n, row in enumerate(ROWS, 1)]


def test_zstandard_too(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines().encode()))
    assert [row for _, row in read_rows(str(tmp_path / "a.jsonl.zst"))] == ROWS


def test_a_list_a_named_list_one_object_and_lines_in_a_json_file(tmp_path):
    path = tmp_path / "a.json"
    for text in (json.dumps(ROWS), json.dumps({"data": ROWS}), lines()):
        path.write_text(text, encoding="utf-8")
        assert [row for _, row in read_rows(str(path))] == ROWS
    chat = {"messages": [{"role": "user", "content": "q"}]}
    path.write_text(json.dumps(chat))
    assert list(read_rows(str(path))) == [("a.json, row 1", chat)]


def test_blank_lines_count_and_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n\n{"text": "y"}\n')
    assert [where for where, _ in read_rows(str(path))] == ["a.jsonl, line 1", "a.jsonl, line 3"]


def test_tables_keep_words_that_look_like_numbers(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [{"prompt": "007", "completion": "NA"}, {"prompt": "true", "completion": 'a "b"\nc'}]
    frame = pandas.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "c.parquet")
    for name in ("a.csv", "b.tsv", "c.parquet"):
        assert [row for _, row in read_rows(str(tmp_path / name))] == rows
    assert [where for where, _ in read_rows(str(tmp_path / "a.csv"))] == ["a.csv, line 2", "a.csv, line 4"]


def test_a_folder_of_files_and_one_that_datasets_wrote(tmp_path):
    import datasets

    (tmp_path / "many" / "inner").mkdir(parents=True)
    (tmp_path / "many" / "b.jsonl").write_text(lines(ROWS[1:]))
    (tmp_path / "many" / "a.json").write_text(json.dumps(ROWS[:1]))
    (tmp_path / "many" / "readme.md").write_text("no data")
    assert [row for _, row in read_rows(str(tmp_path / "many"))] == ROWS
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert [row for _, row in read_rows(str(tmp_path / "saved"))] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "no JSON at line 2"),
        ("a.jsonl", '{"text": "é"}'.encode("latin-1"), "no UTF-8 text at byte .*iconv"),
        ("a.jsonl", b"\n\n", "holds no row"),
        ("a.json", b"3", "holds a JSON int"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(lines().encode() * 50)[:-20], "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.csv", b"prompt,completion\nq,a,b\n", "line 2: the row has more cells"),
        ("a.csv", b"prompt,completion\nq\n", "line 2: the row has fewer cells"),
        ("a.csv", b'prompt,completion\nq,"a\n', "is no table at line"),
        ("a.xlsx", b"", "unknown ending '.xlsx'"),
        ("a", b"", "unknown ending ''"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(read_rows(str(tmp_path / name)))


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "chats.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="chat.jsonl does not exist.*Did you mean 'chats.jsonl'"):
        list(read_rows(str(tmp_path / "chat.jsonl")))


def test_classes_of_data_sets_are_named_not_numbered(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "t.parquet")
    for source in (tmp_path / "saved", tmp_path / "t.parquet"):
        assert [row["label"] for _, row in read_rows(str(source))] == ["yes", "no", None], source


def test_the_files_of_a_folder_are_those_that_its_rows_come_from(tmp_path):
    for name in ("b.jsonl", "a.csv", "notes.md"):
        (tmp_path / name).write_text("x")
    assert row_files(str(tmp_path)) == [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]
    assert row_files(str(tmp_path / "b.jsonl")) == [str(tmp_path / "b.jsonl")] and row_files("hf:x") == ["hf:x"]


def test_a_table_without_rows_and_a_source_without_a_name_hold_no_row(tmp_path, capfd):
    import pyarrow
    from pyarrow import parquet

    empty = pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())})
    parquet.write_table(empty, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="holds no row"):
        list(read_rows(str(tmp_path / "a.parquet")))
    with pytest.raises(ConfigError, match="data='' names nothing"):
        list(read_rows(""))
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="b.parquet cannot be read"):
        list(read_rows(str(tmp_path / "b.parquet")))
    assert capfd.readouterr().err == ""
