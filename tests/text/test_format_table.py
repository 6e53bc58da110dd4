"""Twenty small files in twenty forms: the tokens that are trained on are those of references written by hand."""

import csv
import gzip
import io
import json

import pytest
from chat_formats import TEMPLATES, WITHOUT_SYSTEM, by_hand, tokenizer_with

from featherweight.text.chat_rows import ChatEncoder, Fitting
from featherweight.text.formats import records
from featherweight.text.rows import read_rows

MARKDOWN = "Three steps:\n\n#### Step 1\nDo this.\n\n#### Step 2\nDo that."
CODE = "    def f(x):\n        return x\n"
HUNDRED = [f"turn {number} 🎈" for number in range(100)]


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(delimiter, *rows):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows(rows)
    return text.getvalue().encode()


def turns(*texts, system=None):
    """Return texts of user and assistant in turn as messages."""
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system is not None else []) + said


def sharegpt(*texts):
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def parquet(*rows):
    import pyarrow
    from pyarrow import parquet as files

    sink = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


FILES = {
    "alpaca": ("a.json", json.dumps([{"instruction": "q", "input": "", "output": "a"}]).encode(), turns("q", "a")),
    "alpaca with input": ("a.jsonl", lines({"instruction": "q", "input": "i", "output": "a"}), turns("q\n\ni", "a")),
    "alpaca with system": (
        "a.jsonl", lines({"system": "s", "instruction": "q", "output": "a"}), turns("q", "a", system="s"),
    ),
    "alpaca with history": (
        "a.jsonl", lines({"instruction": "r", "output": "b", "history": [["q", "a"]]}), turns("q", "a", "r", "b"),
    ),
    "ShareGPT": ("a.jsonl", lines({"conversations": sharegpt("q", "a", "r", "b")}), turns("q", "a", "r", "b")),
    "ShareGPT with system": (
        "a.json", json.dumps([{"system": "s", "conversations": sharegpt("q", "a")}]).encode(),
        turns("q", "a", system="s"),
    ),
    "messages": ("a.jsonl", lines({"messages": turns("q", "a", "r", "b")}), turns("q", "a", "r", "b")),
    "messages with system": ("a.jsonl", lines({"messages": turns("q", "a", system="s")}), turns("q", "a", system="s")),
    "messages in a table": ("a.csv", table(",", ["messages"], [json.dumps(turns("q", "a, b"))]), turns("q", "a, b")),
    "prompt and completion": ("a.jsonl", lines({"prompt": "q", "completion": "a"}), turns("q", "a")),
    "prompt and completion of messages": (
        "a.jsonl", lines({"prompt": turns("q", "a", "r"), "completion": [{"role": "assistant", "content": "b"}]}),
        turns("q", "a", "r", "b"),
    ),
    "instruction and response": ("a.tsv", table("\t", ["Instruction", "RESPONSE"], ["q", "a"]), turns("q", "a")),
    "question, context, answer": (
        "a.csv", table(",", ["context", "question", "answer"], ["c\nd", "q", 'a "b"']), turns("c\nd\n\nq", 'a "b"'),
    ),
    "parquet": ("a.parquet", parquet({"prompt": "q", "completion": "a", "system": None}), turns("q", "a")),
    "parquet of messages": ("a.parquet", parquet({"messages": turns("q", "a", "r", "b")}), turns("q", "a", "r", "b")),
    "compressed": ("a.jsonl.gz", gzip.compress(lines({"prompt": "q", "completion": "a"})), turns("q", "a")),
    "Markdown headings": ("a.jsonl", lines({"prompt": "# q", "completion": MARKDOWN}), turns("# q", MARKDOWN)),
    "code with leading blanks": ("a.jsonl", lines({"prompt": "q\n", "completion": CODE}), turns("q\n", CODE)),
    "right to left and emoji": (
        "a.jsonl", lines({"messages": turns("שלום 👩‍🚀", "مرحبا بالعالم 🎉")}), turns("שלום 👩‍🚀", "مرحبا بالعالم 🎉"),
    ),
    "a hundred turns": ("a.jsonl", lines({"messages": turns(*HUNDRED)}), turns(*HUNDRED)),
    "an empty turn of the user": ("a.jsonl", lines({"messages": turns("q", "a", "", "b")}), turns("q", "a", "", "b")),
    "an empty answer": ("a.jsonl", lines({"messages": turns("q", "", "r", "b")}), turns("q", "", "r", "b")),
}  # fmt: skip


def encoded(tokenizer, path):
    (record,) = records(read_rows(str(path)))
    row = ChatEncoder(tokenizer, "assistant", 10**6, "refuse", len(tokenizer)).row(record, Fitting())
    return list(row.ids), list(row.labels)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("name", "content", "messages"), FILES.values(), ids=FILES)
def test_what_a_file_holds_is_what_is_trained_on(tmp_path, template, name, content, messages):
    if messages[0]["role"] == "system" and template in WITHOUT_SYSTEM:
        pytest.skip("this template refuses system turns")
    (tmp_path / name).write_bytes(content)
    tokenizer = tokenizer_with(template)
    ids, labels = [], []
    for text, is_learnt in by_hand(template, messages):
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if is_learnt else [-100] * len(piece)
    assert encoded(tokenizer, tmp_path / name) == (ids, labels)


def test_tool_calls_are_trained_on_and_answers_of_tools_are_not(tmp_path):
    call = {"name": "weather", "arguments": {"city": "Dhaka"}}
    conversation = [("human", "Rain?"), ("function_call", json.dumps(call)), ("observation", "no"), ("gpt", "Dry.")]
    row = {
        "conversations": [{"from": side, "value": text} for side, text in conversation],
        "tools": json.dumps([{"name": "weather"}]),
    }
    (tmp_path / "a.jsonl").write_bytes(lines(row))
    tokenizer = tokenizer_with("qwen")
    ids, labels = [], []
    for text, is_learnt in (
        ('<|im_start|>system\nYou are a helpful assistant.\n\n# Tools\n{"name": "weather"}<|im_end|>\n', False),
        ("<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n", False),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Dhaka"}}\n</tool_call><|im_end|>', True),
        ("\n<|im_start|>tool\nno<|im_end|>\n<|im_start|>assistant\n", False),
        ("Dry.<|im_end|>", True),
        ("\n", False),
    ):
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if is_learnt else [-100] * len(piece)
    assert encoded(tokenizer, tmp_path / "a.jsonl") == (ids, labels)
