"""The recipe's key `sharding`."""

import pytest

from featherweight.distributed.options import ShardingOptions
from featherweight.errors import ConfigError
from featherweight.training.recipe import Recipe
from featherweight.training.resume import resume_conflicts


def recipe(sharding):
    return Recipe.parse({"task": "text", "steps": 1, "micro_batch_size": 1, "sharding": sharding})


def test_a_name_alone_takes_the_defaults():
    assert recipe("ddp").sharding == recipe({"kind": "ddp"}).sharding == ShardingOptions(kind="ddp")
    assert recipe("ddp").override(["sharding.check_every=5"]).sharding.check_every == 5
    assert recipe("ddp").override(["sharding=none"]).sharding.kind == "none"


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="sharding.kind='dpp'"):
        recipe("dpp")


def test_sharding_is_free_on_resume():
    assert resume_conflicts(recipe("ddp").to_dict(), recipe("none").to_dict()) == []
