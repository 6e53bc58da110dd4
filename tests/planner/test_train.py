import functools

import pytest

from featherweight.errors import ConfigError, OutOfMemoryError
from featherweight.planner import TAGS, Target, explain
from featherweight.planner import train as planner_train
from featherweight.planner.plan import plan
from featherweight.planner.train import add_advice, train_planned, train_with_advice
from featherweight.training.recipe import Recipe


@pytest.fixture
def recipe(tiny):
    task = {"name": "text", "model": tiny, "corpus": "english", "seq_len": 64}
    content = {"task": task, "optimizer": {"name": "adamw", "lr": 0.01}, "steps": 2, "micro_batch_size": 1}
    return Recipe.parse(content, where="recipe")


@pytest.fixture
def calls(monkeypatch):
    """What reaches the training itself, which is not run here."""
    seen = []
    monkeypatch.setattr(planner_train, "train", lambda recipe, **options: seen.append((recipe, options)) or "the run")
    return seen


def out_of_memory(recipe, **options):
    raise OutOfMemoryError("train: memory ran out.")


def test_an_error_of_memory_that_ran_out_gets_what_fills_it_and_the_cheapest_changes(recipe):
    target = Target.of("1GB", "cpu")
    error = add_advice(OutOfMemoryError("train: memory ran out."), recipe, target)
    assert isinstance(error, OutOfMemoryError)
    assert str(error) == f"train: memory ran out. {explain(recipe, target).sentence}"
    assert (
        "The step takes " in str(error) and "Its largest tensor: " in str(error) and "Cheapest changes: " in str(error)
    )


def test_what_cannot_be_simulated_leaves_the_error_as_it_is(recipe):
    error = OutOfMemoryError("train: memory ran out.")
    unknown = Recipe.parse({**recipe.to_dict(), "methods": [{"welore": {}}]}, where="recipe")
    assert add_advice(error, unknown, Target.of("1GB", "cpu")) is error


def test_a_recipe_as_it_stands_is_trained_as_it_was_given_and_its_failure_explained(recipe, calls, monkeypatch):
    assert train_with_advice(recipe, overrides=["steps=3"], out="here") == "the run"
    assert calls == [(recipe, {"overrides": ["steps=3"], "resume": False, "estimate": None, "out": "here"})]
    monkeypatch.setattr(planner_train, "train", out_of_memory)
    unknown = Recipe.parse({**recipe.to_dict(), "methods": [{"welore": {}}]}, where="recipe")
    with pytest.raises(OutOfMemoryError, match="memory ran out"):
        train_with_advice(unknown)


def test_a_prediction_goes_along_with_the_run(recipe, calls):
    train_with_advice(recipe, overrides=["task.seq_len=32"], predict=True)
    ((given, options),) = calls
    assert given == recipe and options["estimate"].recipe.task["seq_len"] == 32


def test_a_planned_run_is_named_after_its_file_shown_first_and_held_to_its_plan(recipe, calls, monkeypatch, tmp_path):
    small = functools.partial(plan, exclude=[tag for tag in TAGS if tag != "bf16-weights"], limit=1)
    monkeypatch.setattr(
        planner_train, "plan", lambda *given, exclude, **options: small(*given, **options)
    )  # few candidates: the search has its own tests
    recipe.to_file(tmp_path / "mine.yaml")
    shown = []
    run = train_planned(
        tmp_path / "mine.yaml", "1GB", overrides=["steps=3"], device="cpu", on_plan=shown.append, out="here"
    )
    ((best, options),) = calls
    assert run == "the run" and options == {"estimate": shown[0].best.estimate, "out": "here"}
    assert (best.name, best.steps, best.optimizer["lr"]) == ("mine", 3, 0.01)


def test_a_run_is_not_resumed_with_a_new_plan_or_prediction(recipe, calls):
    for begin in (
        lambda: train_planned(recipe, "1GB", resume=True),
        lambda: train_with_advice(recipe, predict=True, resume=True),
    ):
        with pytest.raises(ConfigError, match="resume=True goes on with the recipe of the run"):
            begin()
    assert calls == []
