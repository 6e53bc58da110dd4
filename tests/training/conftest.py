"""The regression task by name, and a recipe that a test changes as it needs."""

from typing import Any

import pytest

from featherweight.training.recipe import Recipe
from featherweight.training.task import tasks

tasks.register("regression", "regression_task:RegressionTask")


@pytest.fixture(scope="session")
def recipe() -> Any:
    """Return a function that builds a small recipe with some keys changed."""

    def build(**changes: Any) -> Recipe:
        values: dict[str, Any] = {
            "task": "regression",
            "optimizer": {"name": "galore", "rank": 4, "lr": 1e-2, "update_proj_gap": 5},
            "steps": 8,
            "micro_batch_size": 4,
            "memory_steps": [],
            "checkpoint_at_end": False,
        }
        return Recipe.parse({**values, **changes}, where="recipe")

    return build
