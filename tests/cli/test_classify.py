"""`fw classify`: a file or a pipe in, a class a line out; mistakes before anything heavy is imported."""

import io
import json
import subprocess
import sys

import pytest

from featherweight.cli import run
from featherweight.models.classifier import load_classifier
from featherweight.models.save import save_model_folder
from featherweight.models.tokenizer import byte_tokenizer

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = BERT | {"intermediate_size": 32, "max_position_embeddings": 64}
    tokenizer = byte_tokenizer()
    save_model_folder(load_classifier(settings, ("no", "yes"), tokenizer=tokenizer), tokenizer, tmp_path / "model")
    return tmp_path


def test_lines_of_a_file_become_classes_with_probabilities(folder, capsys):
    (folder / "texts.txt").write_text('first\n{"text": "second"}\n{no json\n')
    assert run(["classify", "model", "texts.txt", "--batch-size", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 and all(label in ("no", "yes") and 0.5 <= float(share) <= 1 for label, share in lines)


def test_a_pipe_of_json_lines_gives_json_lines(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"satz": "a", "label": "unused"}\n{"satz": "b"}\n'))
    assert run(["classify", "model", "-", "--json", "--column", "text=satz"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["where"] for one in found] == ["standard input, line 1", "standard input, line 2"]
    for one in found:
        assert one["probability"] == max(one["probabilities"].values())
        # A softmax in float32.
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_a_table_is_read_by_its_columns_and_cuts_are_said(folder, capsys):
    (folder / "pairs.csv").write_text("sentence1,sentence2,label\none,two,yes\n" + "x" * 70 + ",four,no\n")
    assert run(["classify", "model", "pairs.csv"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "1 texts were longer than 64 tokens" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "nowhere.txt"], "file=nowhere.txt is no file"),
        (["./nowhere", "texts.txt"], "does not exist"),
        (["headless", "texts.txt"], "is a BertModel without a classification head"),
        (["model", "empty.txt"], "empty.txt, line 2: text='' is empty"),
        (["model", "table.csv"], "table.csv, line 2: columns=words have no text"),
    ],
)
def test_mistakes_are_one_sentence_before_torch_is_imported(folder, words, message):
    (folder / "texts.txt").write_text("a\n")
    (folder / "empty.txt").write_text("a\n\nb\n")
    (folder / "table.csv").write_text("words\na\n")
    (folder / "headless").mkdir()
    (folder / "headless" / "config.json").write_text('{"architectures": ["BertModel"]}')
    code = (
        "import sys\nfrom featherweight.cli import run\n"
        f"code = run(['classify', *{words!r}])\nassert 'torch' not in sys.modules\nsys.exit(code)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 2, found.stderr
    assert message in found.stderr and len(found.stderr.strip().splitlines()) == 1
