import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import featherweight as fw
from featherweight.cli import run
from featherweight.models.tokenizer import byte_tokenizer

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))
SIZES = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 96}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    MODELS["causal_model"]("llama", **SIZES).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text("\n\n".join(f"Some text of {i} words, again and again." for i in range(200)))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("method", ["plain", "whitened", "refit"])
def test_a_folder_is_compressed_into_one_that_loads(folder, method, capsys):
    words = ["compress", str(folder / "model"), "--rank-reduction", "0.4", "min_dim=32", "--out", str(folder / "small")]
    words += ["--method", method, "--calibration", str(folder / "text.txt"), "--evaluate", str(folder / "text.txt")]
    assert run([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    model = fw.load_low_rank(folder / "small")
    assert facts["rank reduction"] == pytest.approx(0.4, abs=0.01)
    assert facts["parameters after"] == sum(p.numel() for p in model.parameters())
    assert facts["weights on disk (bytes)"] == (folder / "small" / "model.safetensors").stat().st_size
    assert facts["weights on disk (bytes)"] < (folder / "model" / "model.safetensors").stat().st_size
    assert facts["perplexity before"] > 1 and facts["perplexity after"] > 1
    assert "in windows of 128" in facts["measured on"]
    page = (folder / "small" / "report.html").read_text()
    assert "Rank by layer" in page and "perplexity after" in page and "<svg" in page
    assert (folder / "small" / "tokenizer_config.json").exists()
    assert run(words) == 2 and "holds files already" in capsys.readouterr().err


def test_a_plan_writes_nothing_and_shows_the_table(folder, capsys):
    words = [
        "compress",
        str(folder / "model"),
        "min_dim=32",
        "allocation=energy",
        "--param-ratio",
        "0.8",
        "--plan-only",
    ]
    assert run([*words, "--out", str(folder / "small")]) == 0
    text = capsys.readouterr().out
    assert "model.layers.0.self_attn.q_proj" in text and "parameters kept" in text
    assert not (folder / "small").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank-reduction", "1.5"], "expected 0 < rank_reduction < 1"),
        (["--method", "whitened"], "expected a corpus"),
        (["--rank-reduction", "0.5", "--param-ratio", "0.5"], "two budgets"),
        (["storag=dense"], "Did you mean 'storage'"),
    ],
)
def test_wrong_words_are_one_sentence(folder, words, message, capsys):
    assert run(["compress", str(folder / "model"), *words, "--out", str(folder / "small")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder / "small").exists()


@pytest.mark.parametrize("words", [["--rank-reduction", "0.1"], ["--method", "whitened", "--calibration", "text.txt"]])
def test_a_disk_without_room_for_what_the_plan_leaves_is_told_before_anything_is_written(
    folder, monkeypatch, capsys, words
):
    monkeypatch.chdir(folder)
    # Enough for the least that can come out, not for what the plan leaves.
    size = (folder / "model" / "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20 + 0.6 * size))
    assert run(["compress", "model", "min_dim=32", "--evaluate", "none", "--out", "new/small", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: compress: out=new/small needs about ") and "free; expected room for all" in error
    assert not list(folder.rglob("*.safetensors.*")) and not (folder / "new" / "small").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert run(["compress", "model", "--out", "other/small"]) == 2 and not (folder / "other").exists()


def test_a_compressed_folder_trains_on(folder, monkeypatch, capsys):
    assert (
        run(["compress", str(folder / "model"), "min_dim=32", "--evaluate", "none", "--out", str(folder / "small")])
        == 0
    )
    monkeypatch.chdir(folder)
    recipe = {
        "task": {"name": "text", "model": "small", "corpus": "text.txt", "seq_len": 32},
        "steps": 2,
        "micro_batch_size": 2,
        "memory_steps": [],
    }
    done = fw.train(recipe, out=folder / "run", callbacks=[])
    trained = fw.load_low_rank(done.folder / "model")
    before = fw.load_low_rank(folder / "small")
    assert not torch.equal(trained.model.layers[0].mlp.up_proj.P, before.model.layers[0].mlp.up_proj.P)


def test_the_cut_of_a_wanted_perplexity_is_found_and_judged_on_other_text(folder, capsys):
    words = ["compress", str(folder / "model"), "min_dim=32", "--max-perplexity", "1.2x"]
    words += ["--evaluate", str(folder / "text.txt"), "--out", str(folder / "small"), "--json"]
    assert run(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes kept"] < 1
    # Chosen on the next tokens of the same text, which repeats itself.
    assert facts["perplexity after"] <= 1.25 * facts["perplexity before"]
    page = (folder / "small" / "report.html").read_text()
    assert "What cutting one kind alone costs" in page and "mlp.up_proj" in page
    for wrong, message in (("1.0x", "no limit"), ("2", "below the"), ("much", "no limit")):
        assert run([*words[:4], wrong, *words[5:8], str(folder / wrong)]) == 2
        assert message in capsys.readouterr().err
    assert run([*words[:5], "--evaluate", "none", "--out", str(folder / "other")]) == 2
    assert "needs a text" in capsys.readouterr().err
