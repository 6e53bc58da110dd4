import pytest

from featherweight.errors import OutOfMemoryError
from featherweight.planner import Target, explain
from featherweight.planner.train import explained
from featherweight.training.recipe import Recipe


@pytest.fixture
def recipe(tiny):
    task = {"name": "text", "model": tiny, "corpus": "english", "seq_len": 64}
    content = {"task": task, "optimizer": {"name": "adamw", "lr": 0.01}, "steps": 2, "micro_batch_size": 1}
    return Recipe.parse(content, where="recipe")


def test_an_error_of_memory_that_ran_out_gets_what_fills_it_and_the_cheapest_changes(recipe):
    target = Target.of("1GB", "cpu")
    error = explained(OutOfMemoryError("train: memory ran out."), recipe, target)
    assert isinstance(error, OutOfMemoryError)
    assert str(error) == f"train: memory ran out. {explain(recipe, target).sentence}"
    assert (
        "The step takes " in str(error) and "Its largest tensor: " in str(error) and "Cheapest changes: " in str(error)
    )


def test_what_cannot_be_simulated_leaves_the_error_as_it_is(recipe):
    error = OutOfMemoryError("train: memory ran out.")
    unknown = Recipe.parse({**recipe.to_dict(), "methods": [{"welore": {}}]}, where="recipe")
    assert explained(error, unknown, Target.of("1GB", "cpu")) is error
