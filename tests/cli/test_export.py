"""`fw export` writes what --to names, and refuses in a sentence."""

import json
import subprocess
import sys

import pytest
from gguf_models import bpe_tokenizer, write_model

from featherweight.cli import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    write_model(path, bpe_tokenizer())
    return path


@pytest.mark.parametrize(
    ("to", "file"),
    [
        ("hf:bf16", "model.safetensors"),
        ("gguf:q8_0", ""),
        ("ollama", "Modelfile"),
        ("ollama:q4_0", "model.gguf"),
    ],
)
def test_each_kind_is_written_and_nothing_else_is_left(folder, tmp_path, capsys, to, file):
    out = tmp_path / ("out.gguf" if to.startswith("gguf") else "out")
    assert run(["export", str(folder), "--to", to, "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] > 0 and (out / file if file else out).exists()
    assert list(tmp_path.iterdir()) == [out]
    assert run(["export", str(folder), "--to", to, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["./nowhere", "--to", "hf:bf16"], "source=./nowhere does not exist"),
        (["tiny", "--to", "gguf:q8"], "to=gguf:q8 is unknown; expected one of hf:fp32"),
        (["tiny", "--to", "hf:bf16", "--base", "./nowhere"], "source=./nowhere does not exist"),
    ],
)
def test_bad_input_is_one_sentence_before_torch_is_imported(tmp_path, arguments, sentence):
    code = (
        "import sys; from featherweight.cli import run; code = run(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "export", *arguments, "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.split() == ["2", "False"] and sentence in done.stderr and done.stderr.count("\n") == 1


def test_what_gguf_cannot_hold_is_one_sentence(tmp_path, capsys):
    assert run(["export", "tiny", "--to", "gguf:f16", "--out", str(tmp_path / "out.gguf")]) == 2
    error = capsys.readouterr().err
    assert "is none that a GGUF file can name" in error and "--to hf:bf16" in error
    assert not list(tmp_path.iterdir())
