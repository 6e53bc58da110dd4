import time
from pathlib import Path

import pytest

from featherweight.cli import completion, run


def test_words_are_offered_that_go_on_as_the_given_one_begins():
    offer = completion.one_of(["rank", "rate", "steps"])
    assert offer("ra") == ["rank", "rate"] and offer("x") == []


def test_behind_a_comma_the_other_words_are_offered():
    offer = completion.list_of(["adamw", "galore", "galore_8bit"])
    assert offer("galore,ga") == ["galore,galore_8bit"] and offer("") == ["adamw", "galore", "galore_8bit"]


def test_models_examples_and_keys_of_a_recipe_are_known():
    assert "smollm2" in completion.models("smo") and "llama-7b" in completion.models("llama-7")
    assert completion.examples("demo") == ["demo", "demo_tiny"]
    assert completion.recipe_keys("micro") == ["micro_batch_size="]


@pytest.mark.parametrize(
    ("words", "offered"),
    [("fw pl", "plan"), ("fw train a.yaml opt", "optimizer="), ("fw init --example demo_", "demo_tiny")],
)
def test_the_shell_is_answered_within_half_a_second(words, offered, monkeypatch, capsys):
    monkeypatch.setenv("_FW_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    started = time.process_time()
    assert run([]) == 0
    assert time.process_time() - started < 0.5
    assert capsys.readouterr().out.splitlines() == [offered]


def test_completion_is_installed_for_the_shell_that_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    # Outside of a shell, as here, its name has to be given.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert run(["--install-completion", "bash"]) == 0
    assert "installed" in capsys.readouterr().out
    assert "_fw_completion" in (tmp_path / ".bash_completions" / "fw.sh").read_text()
    assert "fw.sh" in (tmp_path / ".bashrc").read_text()
