"""A first recipe says what was understood and can be run."""

from collections import Counter

import pytest
import yaml

from featherweight.models.facts import ModelFacts
from featherweight.text.starter import Choices, starter_recipe
from featherweight.text.survey import Survey
from featherweight.training.recipe import Recipe

TINY = ModelFacts("tiny", "llama", 10**6, 257, 2048)
LARGE = ModelFacts("7b", "llama", 7 * 10**9, 32000, 4096)


def found(lengths, **changes):
    turns = Counter(user=len(lengths), assistant=len(lengths))
    options = {"kind": "conversation", "rows": len(lengths), "turns": turns, **changes}
    return Survey("chats.jsonl", "messages", {}, (), lengths=lengths, learnt=[one // 2 for one in lengths], **options)


@pytest.mark.parametrize(
    ("facts", "method"), [(TINY, None), (ModelFacts("7b", "llama", 7 * 10**9, 32000, 4096), "lora")]
)
def test_it_is_a_recipe_with_a_step_of_sixteen_rows_and_two_passes(facts, method):
    text = starter_recipe("tiny", facts, found([100] * 160), Choices({}), name="chat")
    recipe = Recipe.parse(yaml.safe_load(text), where="recipe")
    assert recipe.task["max_tokens"] == 128 and recipe.task["name"] == "chat" and recipe.name == "chat"
    assert recipe.micro_batch_size * recipe.accumulation_steps == 16 and recipe.steps == 19
    assert [*(recipe.methods[0] if recipe.methods else [None])] == [method]


def test_the_length_holds_98_of_100_rows_within_what_the_model_reads():
    lengths = [200] * 97 + [900] * 2 + [5000]
    text = starter_recipe("tiny", TINY, found(lengths), Choices({}), name="chat")
    assert yaml.safe_load(text)["task"]["max_tokens"] == 960
    assert "# 1 rows are longer than max_tokens" in text
    short = ModelFacts("short", "llama", 10**6, 257, 512)
    assert (
        yaml.safe_load(starter_recipe("s", short, found(lengths), Choices({}), name="c"))["task"]["max_tokens"] == 512
    )


def test_what_was_asked_for_stands_in_the_task():
    choices = Choices({"prompt": "Frage"}, ("Quelle",), "chatml", "last")
    task = yaml.safe_load(starter_recipe("tiny", TINY, found([10]), choices, name="c"))["task"]
    assert task["name"] == "chat" and task["columns"] == {"prompt": "Frage"} and task["train_on"] == "last"
    assert task["ignore_columns"] == ["Quelle"] and task["template"] == "chatml"


def test_labelled_texts_begin_with_the_rates_of_encoders():
    classes = Counter({"yes": 90, "no": 60})
    survey_of = found([20] * 150, kind="classification", turns=Counter(), classes=classes)
    text = starter_recipe("encoder", TINY, survey_of, Choices({"text": "Frage"}), name="c")
    recipe = yaml.safe_load(text)
    task = {"name": "classification", "model": "encoder", "data": "chats.jsonl", "max_tokens": 32}
    assert recipe["task"] == {**task, "columns": {"text": "Frage"}}
    assert recipe["optimizer"] == {"name": "adamw", "lr": 5e-5} and recipe["steps"] == round(150 * 0.95 * 3 / 32)
    assert recipe["micro_batch_size"] * recipe["accumulation_steps"] == 32
    assert "# Understood: 150 texts of 2 classes, the most frequent yes (90), no (60)." in text


@pytest.mark.parametrize(("facts", "lr"), [(TINY, 5e-6), (LARGE, 5e-5)])
def test_preferences_begin_with_smaller_steps_than_chats(facts, lr):
    text = starter_recipe("m", facts, found([40] * 64, kind="preference"), Choices({}), name="c")
    recipe = yaml.safe_load(text)
    assert recipe["optimizer"]["lr"] == lr and recipe["task"]["name"] == "preference"
    assert "the chosen answer is better" in text and "train_on" not in recipe["task"]
