"""`fw data inspect`: what is learnt and what is masked; and what `fw init` refuses beside it."""

import json
import subprocess
import sys

import pytest

from featherweight.cli import run


def test_inspect_shows_what_is_learnt_and_what_is_masked(chat_folder, capsys):
    assert run(["data", "inspect", "chats.jsonl", "--model", "tiny", "--template", "chatml"]) == 0
    text = capsys.readouterr().out
    assert "messages (messages from 'conversations', system)" in text
    assert "40 system, 40 user, 40 assistant" in text
    assert "chats.jsonl, line 3" in text and "<|im_start|>assistant\na2<|im_end|>" in text


def test_inspect_counts_for_programs(chat_folder, capsys):
    words = [
        "data",
        "inspect",
        "chats.jsonl",
        "--model",
        "tiny",
        "--template",
        "chatml",
        "--json",
        "--max-tokens",
        "80",
    ]
    assert run(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == facts["rows_with_system"] == 40
    # "a7<|im_end|>" has 12 bytes, "a17<|im_end|>" 13: the tokens of a byte tokenizer.
    assert facts["learnt_tokens"] == 10 * 12 + 30 * 13
    assert facts["longer_than_max_tokens"] == 40


def test_inspect_shows_classes_and_preferences(chat_folder, capsys):
    (chat_folder / "texts.csv").write_text("text,label\n" + "".join(f"t{n},{'ab'[n % 2]}\n" for n in range(9)))
    assert run(["data", "inspect", "texts.csv"]) == 0
    text = capsys.readouterr().out
    assert "classification (text, label)" in text and "2: a (5), b (4)" in text
    (chat_folder / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "yes", "rejected": "no"}\n')
    assert run(["data", "inspect", "pairs.jsonl", "--model", "tiny", "--template", "chatml"]) == 0
    text = capsys.readouterr().out
    assert "line 1 (chosen)" in text and "yes<|im_end|>" in text and "line 1 (rejected)" in text


def test_columns_of_other_names(chat_folder, capsys):
    words = ["data", "inspect", "fragen.csv", "--column", "prompt=Frage", "--column", "response=Antwort"]
    assert run(words) == 2
    assert "column='Quelle' carries text" in capsys.readouterr().err
    assert run([*words, "--ignore-column", "Quelle"]) == 0
    assert "prompt from 'Frage'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "inspect", "none.jsonl"], "does not exist"),
        (["data", "inspect", "chats.jsonl", "--train-on", "first"], "expected assistant or last, or roles"),
        (["data", "inspect", "chats.jsonl", "--column", "prompt"], "expected field=column"),
        (["init", "chat.json", "--model", "tiny", "--data", "chats.jsonl"], "expected .yaml"),
        (["init", "chat.yaml", "--model", "tiny", "--data", "none.jsonl"], "does not exist"),
    ],
)
def test_a_refused_input_is_answered_before_any_heavy_import(chat_folder, words, message):
    program = (
        f"import sys\nfrom featherweight.cli import run\ncode = run({words!r})\nprint(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert message in done.stderr
