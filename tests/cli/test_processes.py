"""`--nproc` is torchrun with the same command."""

import shutil
import sys

import pytest

from featherweight.cli import processes, run
from featherweight.errors import ConfigError


def test_the_command_is_torchrun_with_the_same_words(monkeypatch, capsys):
    started = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(processes.os, "execv", lambda path, words: started.append((path, words)))
    processes.become_processes(2, ["train", "my recipe.yaml", "sharding=ddp"])
    ((path, words),) = started
    assert path == sys.executable and words[1:4] == ["-m", "torch.distributed.run", "--standalone"]
    shown = capsys.readouterr().err.strip()
    assert shown == ("torchrun --standalone --nproc-per-node 2 -m featherweight train 'my recipe.yaml' sharding=ddp")


def test_all_options_of_the_command_travel(monkeypatch, tmp_path):
    started = []

    def replace(path, words):
        started.append(words)
        sys.exit(0)

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(processes.os, "execv", replace)
    own, recipe = tmp_path / "own.py", tmp_path / "recipe.yaml"
    own.write_text("")
    recipe.write_text("{task: {name: text, model: tiny, corpus: english}, micro_batch_size: 1, steps: 1}")
    (tmp_path / "out").mkdir()
    shutil.copy(recipe, tmp_path / "out" / "recipe.yaml")  # a run to resume
    words = [
        "train",
        str(recipe),
        "steps=2",
        "--out",
        str(tmp_path / "out"),
        "--resume",
        "--json",
        "--import",
        str(own),
    ]
    assert run([*words, "--nproc", "2"]) == 0
    assert started[0][started[0].index("train") :] == words


def test_a_process_that_a_launcher_has_started_stays_what_it_is(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes.os, "execv", lambda *_: pytest.fail("started anew"))
    processes.become_processes(2, ["train"])


def test_no_process_is_refused():
    with pytest.raises(ConfigError, match="nproc=0 is out of range"):
        processes.torchrun_command(0, ["train"])
