import csv
import json
import random

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from featherweight.errors import ConfigError
from featherweight.text.corpus import cut_document, load_documents, split_documents

DOCUMENTS = ["First one.\nIts second line.", "Zweites: größer, \"quoted\", 'single', tab\there", "三つ目 😀"]


def write_corpus(folder, suffix, documents=DOCUMENTS, key="text"):
    path = folder / f"corpus{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    elif suffix == ".jsonl":
        rows = "".join(json.dumps({key: document, "id": 1}, ensure_ascii=False) + "\n" for document in documents)
        path.write_text(rows, encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps([{key: document} for document in documents]), encoding="utf-8")
    elif suffix == ".parquet":
        parquet.write_table(pyarrow.table({"id": list(range(len(documents))), key: documents}), path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([["id", key], *([number, document] for number, document in enumerate(documents))])
    return str(path)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".csv", ".tsv"])
def test_every_file_format_gives_the_same_documents(tmp_path, suffix):
    assert load_documents(write_corpus(tmp_path, suffix)) == DOCUMENTS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".tsv"])
def test_another_column_is_read_by_its_name_and_a_misspelt_one_is_named(tmp_path, suffix):
    path = write_corpus(tmp_path, suffix, key="content")
    assert load_documents(path, text_key="content") == DOCUMENTS
    with pytest.raises(ConfigError, match=r"text_key=contents is no column .*Did you mean 'content'\?"):
        load_documents(path, text_key="contents")


def test_text_file_is_split_at_blank_lines_or_kept_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\nstill one\r\n\r\n \t\n\n  two, indented\n")
    assert load_documents(str(path)) == ["one\nstill one", "  two, indented"]
    assert load_documents(str(path), split_text_files=False) == ["one\nstill one\n\n \t\n\n  two, indented\n"]


def test_folder_is_read_below_in_order_of_paths_and_skips_other_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.md").write_text("# A note\n\nwhole file\n")
    (tmp_path / "a.txt").write_text("x\n\ny\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    assert load_documents(str(tmp_path)) == ["x", "y", "# A note\n\nwhole file\n"]


def test_json_rows_may_be_plain_texts_and_empty_cells_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('"one"\n\n{"text": null}\n{"text": " "}\n{"text": "two\\u2028"}\n')
    assert load_documents(str(tmp_path / "a.jsonl")) == ["one", "two\u2028"]


def test_datasets_folder_and_data_files_are_read_through_the_datasets_package(tmp_path):
    rows = datasets.Dataset.from_dict({"text": DOCUMENTS})
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "splits"))
    assert load_documents(str(tmp_path / "saved")) == DOCUMENTS
    assert load_documents(str(tmp_path / "splits")) == DOCUMENTS
    assert load_documents(f"hf:{tmp_path / 'splits'}:test") == DOCUMENTS[1:2]


def test_hub_name_tells_a_split_from_a_configuration():
    from featherweight.text.corpus import _parse_hub_name

    assert _parse_hub_name("hf:a/b") == ("a/b", None, "train")
    assert _parse_hub_name("hf:a/b:wikitext-2-raw-v1") == ("a/b", "wikitext-2-raw-v1", "train")
    assert _parse_hub_name("hf:a/b:validation") == ("a/b", None, "validation")
    assert _parse_hub_name("hf:a/b:en:train[:1%]") == ("a/b", "en", "train[:1%]")
    for malformed in ("hf:", "hf:a:b:c:d", "hf:a::train"):
        with pytest.raises(ConfigError, match="is malformed"):
            _parse_hub_name(malformed)


def test_built_in_corpora_are_there_in_a_fixed_order():
    english = load_documents("english")
    assert len(english) > 50
    assert english == load_documents("english")
    assert sum(map(len, english)) > 300_000
    python = load_documents("python")
    assert len(python) > 300
    assert any("class OrderedDict" in document for document in python)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", r"empty.txt holds no text; expected at least one document"),
        ("blank.jsonl", b"\n\n", r"blank.jsonl holds no text"),
        ("latin.txt", "größe".encode("latin1"), r"latin.txt is no UTF-8 text at byte 2; .*iconv"),
        ("latin.csv", "text\ngröße\n".encode("latin1"), r"latin.csv is no UTF-8 text at byte 7"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', r"broken.jsonl is no JSON at line 2, column 10"),
        ("broken.json", b"[1,\n2", r"broken.json is no JSON at line 2"),
        ("object.json", b'{"text": "a"}', r"holds a JSON dict; expected a list"),
        ("number.jsonl", b"3\n", r"row=3 .*line 1\) is no document"),
        ("messages.jsonl", b'{"text": [{"role": "user"}]}', r"text_key=text holds a list .*line 1\); expected text"),
        ("broken.parquet", b"PAR1 not really", r"broken.parquet is no parquet file"),
        ("a.docx", b"x", r"unknown ending '.docx'; expected one of .txt"),
        ("header.csv", b"text\n", r"header.csv holds no text"),
        ("nothing.csv", b"", r"nothing.csv holds no text"),
    ],
)
def test_bad_file_gets_one_clear_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_documents(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_missing_corpus_names_the_nearest_corpus_or_file(tmp_path):
    (tmp_path / "novel.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"Did you mean 'novel.txt'\?"):
        load_documents(str(tmp_path / "nowel.txt"))
    with pytest.raises(ConfigError, match=r"Did you mean 'english'\?"):
        load_documents("englich")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="folder without readable files"):
        load_documents(str(tmp_path / "empty"))


def test_missing_hub_data_set_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="corpus=hf:nobody/nothing cannot be loaded") as caught:
        load_documents("hf:nobody/nothing")
    assert "\n" not in str(caught.value)


def test_split_depends_on_the_text_alone():
    documents = [f"document {number}" for number in range(400)]
    training, held_out = split_documents(documents, 0.1)
    assert sorted(training + held_out) == sorted(documents)
    shuffled = random.Random(1).sample(documents, k=len(documents))
    assert set(split_documents(shuffled, 0.1)[1]) == set(held_out)
    # A document stays on its side when others come or go.
    assert set(split_documents(documents[:200], 0.1)[1]) == set(held_out) & set(documents[:200])
    # 400 draws at 0.1: 40 expected, standard deviation 6; four of them to each side.
    assert 16 <= len(held_out) <= 64
    assert set(split_documents(documents, 0.1, seed=1)[1]) != set(held_out)


def test_copies_of_a_document_never_stand_on_both_sides():
    documents = [f"document {number % 20}" for number in range(200)]
    training, held_out = split_documents(documents, 0.3)
    assert len(training) + len(held_out) == 200
    assert not set(training) & set(held_out)


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_no_side_of_a_split_is_ever_empty(fraction, count):
    documents = [f"document {number}" for number in range(count)]
    training, held_out = split_documents(documents, fraction)
    assert training and held_out
    assert len(training) + len(held_out) == count
    if fraction != 0.5:
        assert min(len(training), len(held_out)) == 1


def test_fewer_than_two_different_documents_or_a_bad_fraction_are_refused():
    with pytest.raises(ConfigError, match="documents=1 after removing copies, too few to split"):
        split_documents(["same", "same"], 0.5)
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match=f"held_out={fraction} is out of range"):
            split_documents(["a", "b"], fraction)


def test_a_document_is_cut_at_line_ends_without_losing_a_character():
    text = "".join(f"line {i}\n" for i in range(50))
    pieces = cut_document(text)
    assert len(pieces) == 20 and "".join(pieces) == text and all(piece.endswith("\n") for piece in pieces)
    assert cut_document("one line") == ["one line"]
