"""The recipe of a plan as text: a recipe again, with the reasons beside the choices."""

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
