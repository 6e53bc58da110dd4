"""Odd files of chat data, end to end through the task: what is trained is what stands there, or the line is named."""

import gzip
import json

import pytest

from featherweight.errors import ConfigError
from featherweight.text.chat_task import ChatConfig, ChatTask

OPTIONS = {"model": "tiny", "template": "chatml", "held_out": 0.3, "max_tokens": 1000}
ROWS = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(12)]
LINES = [json.dumps(row) for row in ROWS]


def build(path, **options):
    return ChatTask(ChatConfig.parse({**OPTIONS, "data": str(path), **options}), seed=0)


def said(task):
    rows = [row for split in ("train", "held_out") for row in task._rows[split]]
    texts = (task.tokenizer.decode([label for label in row.labels if label != -100]) for row in rows)
    return sorted(text.removesuffix("<|im_end|>") for text in texts)


READ = {
    "a byte order mark and Windows line ends": ("a.jsonl", ("\ufeff" + "\r\n".join(LINES) + "\r\n").encode()),
    "empty lines": ("a.jsonl", "\n\n".join(["", *LINES, "   ", ""]).encode()),
    "no line end at the end": ("a.jsonl", "\n".join(LINES).encode()),
    "lines in a .json file": ("a.json", "\n".join(LINES).encode()),
    "a table of Windows": ("a.csv", "\r\n".join(["prompt,completion", *(f"q{n},a{n}" for n in range(12))]).encode()),
    "a table of a country where 1,5 is a number": (
        "a.csv",
        "\n".join(["prompt;completion", *(f"q{n};a{n}" for n in range(12))]).encode(),
    ),
    "a table with a column of numbers without a name": (
        "a.csv",
        "\n".join([",prompt,completion", *(f"{n},q{n},a{n}" for n in range(12))]).encode(),
    ),
    "two members in one gzip": (
        "a.jsonl.gz",
        gzip.compress("\n".join([*LINES[:6], ""]).encode()) + gzip.compress("\n".join(LINES[6:]).encode()),
    ),
    "columns with nothing in them": (
        "a.jsonl",
        "\n".join(json.dumps({**row, "system": None, "tools": [], "history": "", "note": ""}) for row in ROWS).encode(),
    ),
}


@pytest.mark.parametrize(("name", "content"), READ.values(), ids=READ)
def test_odd_files_are_read_as_they_stand(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert said(build(tmp_path / name)) == sorted(row["completion"] for row in ROWS)


def test_a_giant_line_and_a_nul_and_separators_of_lines_are_text(tmp_path):
    odd = ["x" * 300_000, "a\x00b", "one\u2028two\x85three\x0bfour", "\ud83d\ude00", "  \t "]
    rows = [{"prompt": f"q{n}", "completion": text} for n, text in enumerate(odd)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *ROWS]))
    task = build(tmp_path / "a.jsonl", held_out=str(other(tmp_path)))
    texts = said(task)
    assert {"a\x00b", "one\u2028two\x85three\x0bfour", "\U0001f600", "  \t "} <= set(texts)
    assert task.describe()["train_left_out_rows"] == 1


def other(folder):
    path = folder / "held.jsonl"
    path.write_text('{"prompt": "other", "completion": "other"}\n')
    return path


def line(number, text):
    return ("a.jsonl", "\n".join([*LINES[: number - 1], text, *LINES[number - 1 :]]).encode())


REFUSED = {
    "a table whose column stands there twice": (
        ("a.csv", b"prompt,prompt,completion\nq,r,a\n"),
        "a.csv, line 1: column='prompt' stands there twice",
    ),
    "a number of thousands of digits": (
        line(4, '{"prompt": "q", "n": ' + "9" * 5000 + "}"),
        "line 4: a value cannot be",
    ),
    "a row that is nested too deep": (line(4, '{"a":' * 5000 + "1" + "}" * 5000), "line 4: the row is nested too deep"),
    "half a gzip": (("a.jsonl.gz", gzip.compress("\n".join(LINES).encode())[:-12]), "a.jsonl.gz cannot be read"),
    "a gzip with a wrong byte": (
        ("a.jsonl.gz", gzip.compress("\n".join(LINES).encode())[:20] + b"\0\0\0\0" + b"x" * 40),
        "a.jsonl.gz cannot be read",
    ),
    "no gzip at all": (("a.jsonl.gz", b"plain"), "a.jsonl.gz cannot be read"),
    "Latin 1": (("a.jsonl", '{"prompt": "gr\xfc\xdfe", "completion": "a"}'.encode("latin-1")), "no UTF-8 text"),
    "UTF-16": (("a.jsonl", "\n".join(LINES).encode("utf-16")), "no UTF-8 text"),
    "a line that ends early": (line(4, '{"prompt": "q", "compl'), "no JSON at line 4"),
    "a list in a line": (line(4, '["q", "a"]'), "line 4: the row is a list"),
    "a number": (line(4, '{"prompt": "q", "completion": NaN}'), "line 4: completion=nan is a float"),
    "a key that stands there twice": (
        line(4, '{"prompt": "q", "completion": "a", "completion": "b"}'),
        "line 4: key='completion' stands there twice",
    ),
    "half a pair of surrogates": (
        line(4, '{"prompt": "q", "completion": "\\ud83d"}'),
        "line 4: .*surrogate alone.*is no text",
    ),
    "nothing": (("a.jsonl", b""), "holds no row"),
    "a table whose cells differ": (("a.csv", b"prompt,completion\nq,a\nq,a,b\n"), "line 3: the row has more cells"),
    "an object in a text": (line(4, '{"prompt": {"text": "q"}, "completion": "a"}'), "line 4: prompt=.* is a dict"),
}


@pytest.mark.parametrize(("file", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_data_is_refused_in_one_sentence_with_its_place(tmp_path, file, message):
    name, content = file
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        build(tmp_path / name)
    assert "expected" in str(refused.value) and "\n" not in str(refused.value)
