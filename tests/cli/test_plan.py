import json
import os
import subprocess
import sys

import pytest
import yaml

from featherweight.cli import run
from featherweight.training.recipe import load_recipe

EXCLUDE = ["--exclude", "bf16-weights, 8-bit-states,low-rank,int8-weights,few-parameters"]


@pytest.fixture
def tiny_recipe(tmp_path):
    model = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    model |= {"num_attention_heads": 2, "max_position_embeddings": 512}
    task = {"name": "text", "model": model, "corpus": "english", "seq_len": 64}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"task": task, "optimizer": "adamw", "steps": 2, "micro_batch_size": 1}))
    return str(path)


def test_text_shows_the_verdict_the_row_and_how_to_train_it(tiny_recipe, tmp_path, capsys):
    out, page = tmp_path / "best [1].yaml", tmp_path / "plan [1].html"
    arguments = ["plan", tiny_recipe, "--budget", "1GB", "-d", "cpu", *EXCLUDE, "--out", str(out)]
    assert run([*arguments, "--report", str(page)]) == 0
    text = capsys.readouterr().out
    assert (
        text.startswith("Fits: 501.40 MiB of 953.67 MiB") and "AdamW, float32 weights" in text and "Assumed: " in text
    )
    assert f"Train it: fw train {out}" in text and f"Report: {page}" in text
    assert load_recipe(out).precision == "bf16_autocast" and page.exists()


def test_json_is_one_object_with_solution_and_changes(tiny_recipe, capsys):
    arguments = ["plan", tiny_recipe, "-b", "1GB", "-d", "cpu", *EXCLUDE, "--json", "--solve", "min_memory", "--why"]
    assert run(arguments) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"] == "fits" and content["alternatives"] == []
    assert content["solution"]["value"] > content["solution"]["total_bytes"] > 0
    assert isinstance(content["changes"], list)


def test_the_exit_code_is_1_where_nothing_fits(tiny_recipe, tmp_path, capsys):
    out = tmp_path / "best.yaml"
    assert run(["plan", tiny_recipe, "-b", "100MB", "-d", "cpu", *EXCLUDE, "-o", str(out)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("Nothing fits 95.37 MiB") and "no: AdamW, float32 weights: needs about" in text
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--budget", "much"],
        ["--budget", "_GB"],
        ["--device", "rtx9999"],
        ["--exclude", "quality"],
        ["--seq-len", "0"],
        ["--tokens-per-step", "0"],
    ],
)
def test_wrong_input_has_exit_code_2_and_one_sentence(tiny_recipe, wrong, capsys):
    assert run(["plan", tiny_recipe, "--device", "cpu", *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "expected" in err


def test_neither_model_nor_recipe_is_an_error(capsys):
    assert run(["plan", "--budget", "12GB", "--device", "cpu"]) == 2
    assert "expected one of them" in capsys.readouterr().err


def test_a_narrow_terminal_without_unicode_shows_the_plan(tiny_recipe):
    code = "import sys; from featherweight.cli import main; main(sys.argv[1:])"
    environment = os.environ | {"COLUMNS": "60", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code, "plan", tiny_recipe, "-b", "1GB", "-d", "cpu", *EXCLUDE]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr.decode()
    assert max(map(len, done.stdout.decode("ascii").splitlines()[:4])) <= 60
