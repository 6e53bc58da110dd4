"""Recipes without rows of some length are planned as they stand."""

import pytest

import featherweight as fw
from featherweight.planner.operators import operator_rows
from featherweight.planner.target import Target
from featherweight.training.recipe import load_recipe

RECIPE = {
    "task": {"name": "pde", "data": "darcy", "resolution": 16, "n_modes": [16, 16], "hidden_channels": 24},
    "optimizer": {"name": "tensor_galore", "rank": 0.25},
    "micro_batch_size": 2,
    "steps": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def planned():
    return fw.plan(None, recipe=RECIPE, device="rtx4090")


def test_an_operator_is_planned_under_its_optimizers_the_most_faithful_first(planned):
    families = [row.family for row in planned.rows]
    assert families[0] == "adamw" and set(families) == {"adamw", "adamw_8bit", "tensor_galore", "tensor_galore_8bit"}
    bytes_of = {row.family: row.need.allocated_bytes for row in planned.rows}
    assert bytes_of["tensor_galore_8bit"] < bytes_of["tensor_galore"] < bytes_of["adamw"]
    assert all(row.recipe.micro_batch_size == 2 for row in planned.rows)
    own = next(row for row in planned.rows if row.family == "tensor_galore")
    assert own.recipe == load_recipe(RECIPE) and own.tags == ("low-rank",)
    assert planned.report().section("Verdict").text.startswith("Fits")


def test_what_does_not_fit_says_what_it_needs(planned):
    most = max(row.need.total_bytes for row in planned.rows)
    small = Target.of(most // 4, "rtx4090")
    fitting, refused, nearest = operator_rows(load_recipe({**RECIPE, "compare": {}}), small, limit=1)
    assert not fitting and nearest is not None
    assert all("needs" in reason for reason in refused.values()) and nearest.family in refused
