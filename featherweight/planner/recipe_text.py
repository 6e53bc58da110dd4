"""The recipe that a plan writes: YAML with comments that say why each choice stands there, and what is still open."""

from collections.abc import Sequence
from typing import Any

from featherweight.config import yaml_text
from featherweight.errors import ConfigError
from featherweight.planner.candidates import TAGS
from featherweight.planner.row import PlanRow
from featherweight.training.recipe import Recipe

_ALWAYS = ("task", "methods", "optimizer", "precision", "steps", "micro_batch_size", "accumulation_steps")
"""Keys that are written even where they hold their defaults: the plan has chosen them, or users look for them."""


def recipe_text(row: PlanRow, comments: Sequence[str] = ()) -> str:
    """Return the recipe of a row as YAML that `load_recipe` reads.

    Args:
        row: of a plan.
        comments: lines for the top, such as what was understood of the data.
    """
    recipe = row.recipe
    given_up = "; ".join(TAGS[tag] for tag in row.tags)
    notes = {
        "methods": f"Activations: {row.keeping}.",
        "optimizer": f"{row.family}. The learning rate is a starting point: tune it.",
        "precision": f"Gives up against float32 AdamW: {given_up or 'nothing'}.",
        "micro_batch_size": "Rows at once; times accumulation_steps, the rows of an optimizer step.",
    }
    lines = [f"# {line}" for line in (*comments, *_open_questions(recipe))]
    chosen = recipe.model_dump(mode="json", exclude_defaults=True)
    values = {key: value for key, value in recipe.to_dict().items() if key in _ALWAYS or key in chosen}
    for key, value in values.items():
        if key in notes:
            lines.append(f"# {notes[key]}")
        lines.append(_entry(key, value))
    return "\n".join([*lines, ""])


def _open_questions(recipe: Recipe) -> list[str]:
    """Return what the user has to do before the recipe trains what was meant."""
    try:
        recipe.check_weights()
    except ConfigError as problem:
        return ["", "NOT READY: fw train refuses this recipe until you decide:", f"  {problem}", ""]
    return []


def _entry(key: str, value: Any) -> str:
    """Return a setting: the task in lines, everything else in one."""
    if key == "task":
        return yaml_text({key: value}).rstrip("\n")
    if isinstance(value, dict | list):
        return yaml_text({key: value}, in_one_line=True).strip()[1:-1]
    return yaml_text({key: value}).rstrip("\n")
