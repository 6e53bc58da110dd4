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


def test_labelled_texts_give_a_recipe_of_classification_for_an_encoder_without_a_template(tmp_path):
    from featherweight.models.classifier import load_classifier
    from featherweight.models.save import save_model_folder
    from featherweight.models.tokenizer import byte_tokenizer

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    settings = {"model_type": "bert", "max_position_embeddings": 64, **sizes}
    tokenizer = byte_tokenizer()
    save_model_folder(load_classifier(settings, ("a", "b"), tokenizer=tokenizer), tokenizer, tmp_path / "bert")
    data = write(tmp_path, [{"sentence": f"t {n}", "label": n % 3} for n in range(30)])
    seen = look("fw init", str(tmp_path / "bert"), data, **{**OPTIONS, "template": None})
    assert seen.facts.model_type == "bert" and seen.facts.max_position_embeddings == 64
    task = seen.recipe(None)["task"]
    assert task == {"name": "classification", "model": str(tmp_path / "bert"), "data": data, "max_tokens": 16}
    assert "30 texts of 3 classes" in "\n".join(seen.comments(16))


def test_a_shape_without_weights_is_refused(tmp_path):
    data = write(tmp_path, [{"prompt": "q", "completion": "a"}])
    with pytest.raises(ConfigError, match="fw init: model=llama-60m is a shape"):
        look("fw init", "llama-60m", data, **OPTIONS)
