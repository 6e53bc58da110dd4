"""A look at a model and data before a recipe is chosen."""

import json

import pytest

from featherweight.cli.look import look
from featherweight.errors import ConfigError

OPTIONS = {"columns": {}, "ignore_columns": [], "template": "chatml", "train_on": "assistant"}


def write(folder, rows):
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "data.jsonl")


def test_a_look_gives_a_recipe_for_the_users_data_and_says_what_was_understood(tmp_path):
    data = write(tmp_path, [{"prompt": f"q{n}", "completion": "a" * 40} for n in range(20)])
    seen = look("fw init", "tiny", data, **OPTIONS)
    task = seen.recipe(None)["task"]
    assert (task["name"], task["data"], task["template"]) == ("chat", data, "chatml")
    assert task["max_tokens"] >= max(seen.found.lengths)
    assert seen.recipe(96)["task"]["max_tokens"] == 96
    text = "\n".join(seen.comments(96))
    assert "20 rows" in text and "tiny" in text


def test_documents_name_the_task_that_trains_on_them(tmp_path):
    with pytest.raises(ConfigError, match="fw plan: data=.* holds documents.*task text"):
        look("fw plan", "tiny", write(tmp_path, [{"text": "t"}]), **OPTIONS)


def test_a_shape_without_weights_is_refused(tmp_path):
    data = write(tmp_path, [{"prompt": "q", "completion": "a"}])
    with pytest.raises(ConfigError, match="fw init: model=llama-60m is a shape"):
        look("fw init", "llama-60m", data, **OPTIONS)
