"""The recipe of a plan as text: a recipe again, with the reasons beside the choices."""

import dataclasses

import yaml

from featherweight.planner.recipe_text import recipe_text
from featherweight.training.recipe import Recipe


def test_the_text_is_the_recipe_of_its_row(tiny_plan):
    for row in tiny_plan.rows:
        assert Recipe.parse(yaml.safe_load(recipe_text(row)), where="recipe") == row.recipe


def test_comments_stand_at_the_top_and_reasons_above_their_keys(tiny_plan):
    lines = recipe_text(tiny_plan.best, ["Understood: 60 rows."]).splitlines()
    assert lines[0] == "# Understood: 60 rows."
    (optimizer,) = (index for index, line in enumerate(lines) if line.startswith("optimizer:"))
    assert lines[optimizer - 1].startswith(f"# {tiny_plan.best.family}. The learning rate is a starting point")
    assert "# Gives up against float32 AdamW: nothing." in lines


def test_a_recipe_that_waits_for_a_decision_says_so_at_its_top(tiny_plan):
    row = dataclasses.replace(tiny_plan.best, recipe=tiny_plan.best.recipe.override(["task.model=llama-60m"]))
    text = recipe_text(row)
    assert "# NOT READY: fw train refuses this recipe until you decide:" in text
    assert "model=llama-60m is a shape" in text and "task.weights: random" in text
