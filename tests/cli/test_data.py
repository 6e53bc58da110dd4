"""`fw data inspect` and `fw init`: from a file and a model to a recipe that trains what was brought."""

import json
import subprocess
import sys

import pytest
import yaml

from featherweight.cli import run
from featherweight.training.recipe import load_recipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"system": "pirate", "conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]}
        for n in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fragen.csv").write_text("Frage,Antwort,Quelle\nq1,a1,book\nq2,a2,book\n")
    return tmp_path


def test_inspect_shows_what_is_learnt_and_what_is_masked(folder, capsys):
    assert run(["data", "inspect", "chats.jsonl", "--model", "tiny", "--template", "chatml"]) == 0
    text = capsys.readouterr().out
    assert "messages (messages from 'conversations', system)" in text
    assert "40 system, 40 user, 40 assistant" in text
    assert "chats.jsonl, line 3" in text and "<|im_start|>assistant\na2<|im_end|>" in text


def test_inspect_counts_for_programs(folder, capsys):
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


def test_columns_of_other_names(folder, capsys):
    words = ["data", "inspect", "fragen.csv", "--column", "prompt=Frage", "--column", "response=Antwort"]
    assert run(words) == 2
    assert "column='Quelle' carries text" in capsys.readouterr().err
    assert run([*words, "--ignore-column", "Quelle"]) == 0
    assert "prompt from 'Frage'" in capsys.readouterr().out


def test_init_writes_a_recipe_that_trains(folder, capsys):
    assert run(["init", "chat.yaml", "--model", "tiny", "--data", "chats.jsonl", "--template", "chatml"]) == 0
    assert "Next: fw train chat.yaml" in capsys.readouterr().out
    recipe = load_recipe("chat.yaml", [])
    assert recipe.task["name"] == "chat" and recipe.task["template"] == "chatml"
    content = (folder / "chat.yaml").read_text()
    assert "# Understood: 40 rows of the format 'messages'" in content
    assert yaml.safe_load(content)["steps"] == round(40 * 0.95 * 2 / 16)
    assert run(["train", "chat.yaml", "steps=1", "--out", "run"]) == 0
    template = json.loads((folder / "run/summary.json").read_text())["task"]["template"]
    assert template == "chatml"


def test_init_never_replaces_a_file_unasked(folder, capsys):
    (folder / "chat.yaml").write_text("mine")
    assert run(["init", "chat.yaml", "--model", "tiny", "--data", "chats.jsonl", "--template", "chatml"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (folder / "chat.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "inspect", "none.jsonl"], "does not exist"),
        (["data", "inspect", "chats.jsonl", "--train-on", "first"], "expected assistant or last"),
        (["data", "inspect", "chats.jsonl", "--column", "prompt"], "expected field=column"),
        (["init", "chat.json", "--model", "tiny", "--data", "chats.jsonl"], "expected .yaml"),
        (["init", "chat.yaml", "--model", "tiny", "--data", "none.jsonl"], "does not exist"),
    ],
)
def test_a_refused_input_is_answered_before_any_heavy_import(folder, words, message):
    program = (
        f"import sys\nfrom featherweight.cli import run\ncode = run({words!r})\nprint(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert message in done.stderr
