"""`fw export` writes what --to names, and refuses in a sentence."""

import json

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
