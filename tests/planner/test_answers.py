import pytest

from featherweight.errors import ConfigError
from featherweight.planner.answers import answer

EXCLUDE = ["8-bit-states", "low-rank", "int8-weights", "few-parameters", "bf16-weights"]


@pytest.fixture
def recipe(tiny):
    task = {"name": "text", "model": tiny, "corpus": "english", "seq_len": 64}
    return {"task": task, "optimizer": {"name": "galore", "rank": 8}, "steps": 2, "micro_batch_size": 1}


@pytest.mark.slow  # tests/cli/test_plan.py asks the same of the command
def test_questions_are_about_the_recipe_as_it_stands(recipe):
    answers = answer(None, "1GB", recipe=recipe, device="cpu", exclude=EXCLUDE, unknown="min_memory", why=True)
    assert answers.solution.recipe.optimizer["name"] == "galore"  # that of the plan is AdamW
    assert answers.plan.best.recipe.optimizer["name"] == "adamw"
    assert answers.reasons.name == "the recipe as it stands"
    content = answers.to_dict()
    assert content["solution"]["value"] == answers.solution.value and content["why"]["name"] == answers.reasons.name


def test_questions_about_a_model_are_about_the_best_recipe_or_the_nearest(tiny):
    told = []
    options = {"device": "cpu", "seq_len": 64, "exclude": EXCLUDE, "on_progress": told.append}
    best = answer(tiny, "1GB", unknown="min_memory", **options)
    assert best.solution.recipe == best.plan.best.recipe and best.reasons is None
    assert told[-1] == "what min_memory fits"
    nothing = answer(tiny, "1MB", unknown="rank", why=True, **options)
    assert not nothing.plan.rows and nothing.solution is None
    assert nothing.to_dict()["solution"] == {"value": None, "reason": nothing.unsolvable}
    assert nothing.reasons.name == nothing.plan.nearest.family


def test_an_unknown_question_is_refused_before_the_search(tiny):
    told = []
    with pytest.raises(ConfigError, match="cannot be solved for"):
        answer(tiny, "1GB", unknown="lenght", on_progress=told.append)
    assert told == []
