import io
import json
import subprocess
import sys

import pytest

import featherweight
from featherweight.cli import main, run
from featherweight.errors import ConfigError


def test_help_shows_the_commands_and_examples(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for part in ("train", "compare", "measure", "fw train recipe.yaml optimizer.rank=64"):
        assert part in text


@pytest.mark.parametrize("command", ["train", "compare", "measure"])
def test_the_help_of_each_command_has_examples(capsys, command):
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples" in text and f"fw {command} recipe.yaml" in text and "--json" in text


def test_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"featherweight {featherweight.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "smal.yaml"], "smal.yaml does not exist; expected a readable file. Did you mean 'small.yaml'?"),
        (["train", "small.yaml", "optimizer.rank=0"], "optimizer: rank=0 is out of range; expected > 0"),
        (
            ["train", "small.yaml", "stpes=3"],
            "small.yaml: stpes=3 is unknown; expected a known key. Did you mean 'steps'?",
        ),
        (["train", "small.yaml", "steps"], "override='steps' is malformed; expected key=value"),
        (["train", "small.yaml", "optimizer.rnak=3"], "rnak=3 is unknown; expected a known key. Did you mean 'rank'?"),
        (["train", "small.yaml", "--out", "small.yaml/run"], "cannot be written"),
        (["compare", "small.yaml", "--optimizers", "adamw,galor"], "Did you mean 'galore'?"),
        (["measure", "small.yaml", "task.hiden=3"], "hiden=3 is unknown; expected a known key. Did you mean 'hidden'?"),
    ],
)
def test_bad_input_is_one_sentence_without_a_traceback_and_exit_code_2(
    recipe_file, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(recipe_file.parent)
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.startswith("error: ") and err.count("\n") == 1
    assert out == ""


def test_the_example_of_the_help_that_changes_the_optimizer_and_its_rank_works(recipe_file, capsys):
    arguments = ["measure", str(recipe_file), "optimizer=galore_8bit", "optimizer.rank=2", "--json"]
    assert run(arguments) == 0
    with_rank_2 = json.loads(capsys.readouterr().out)["predicted"]["optimizer_state"]
    assert run([*arguments, "optimizer.rank=8"]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"]["optimizer_state"] > with_rank_2


def test_output_that_cannot_show_a_character_does_not_end_the_program(recipe_file, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(["measure", str(recipe_file), "name=né"]) == 0
    terminal.flush()
    assert b"Memory of 3 steps: n?" in terminal.buffer.getvalue()


def test_the_package_can_be_executed():
    done = subprocess.run(
        [sys.executable, "-m", "featherweight", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"featherweight {featherweight.__version__}\n", done.stderr


def test_a_usage_error_has_exit_code_2(capsys):
    assert run(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_a_failure_has_exit_code_1(recipe_file, tmp_path, capsys):
    code = run(["train", str(recipe_file), "task.broken_at=1", "--out", str(tmp_path / "run")])
    assert code == 1
    assert "loss=nan is not finite in step 2" in capsys.readouterr().err


def test_debugging_shows_where_an_error_came_from(recipe_file, monkeypatch):
    monkeypatch.setenv("FEATHERWEIGHT_DEBUG", "1")
    with pytest.raises(ConfigError):
        run(["train", str(recipe_file), "optimizer.rank=0"])


def test_main_leaves_the_process_with_the_code():
    with pytest.raises(SystemExit, match="^2$"):
        main(["train"])
