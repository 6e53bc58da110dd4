"""`fw init`: from a file and a model to a recipe that trains what was brought."""

import json

import yaml

from featherweight.cli import run
from featherweight.training.recipe import load_recipe


def test_init_writes_a_recipe_that_trains(chat_folder, capsys):
    assert run(["init", "chat.yaml", "--model", "tiny", "--data", "chats.jsonl", "--template", "chatml"]) == 0
    assert "Next: fw train chat.yaml" in capsys.readouterr().out
    recipe = load_recipe("chat.yaml", [])
    assert recipe.task["name"] == "chat" and recipe.task["template"] == "chatml"
    content = (chat_folder / "chat.yaml").read_text()
    assert "# Understood: 40 rows of the format 'messages'" in content
    assert yaml.safe_load(content)["steps"] == round(40 * 0.95 * 2 / 16)
    assert run(["train", "chat.yaml", "steps=1", "--out", "run"]) == 0
    template = json.loads((chat_folder / "run/summary.json").read_text())["task"]["template"]
    assert template == "chatml"


def test_init_never_replaces_a_file_unasked(chat_folder, capsys):
    (chat_folder / "chat.yaml").write_text("mine")
    assert run(["init", "chat.yaml", "--model", "tiny", "--data", "chats.jsonl", "--template", "chatml"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (chat_folder / "chat.yaml").read_text() == "mine"
