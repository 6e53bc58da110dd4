import pytest

from featherweight.errors import ConfigError
from featherweight.planner.candidates import (
    ACTIVATION_STRATEGIES,
    CPU_TWINS,
    FAMILIES,
    TAGS,
    families_without,
    family_called,
    recipe_of,
)
from featherweight.training.estimate import estimate_memory
from featherweight.training.recipe import Recipe


@pytest.fixture(scope="module")
def base(tiny):
    task = {"name": "text", "model": tiny, "corpus": "english", "seq_len": 32}
    return Recipe.parse({"task": task, "steps": 7, "micro_batch_size": 1, "accumulation_steps": 2}, where="recipe")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)
def test_every_family_with_every_keeping_is_a_recipe_with_the_data_of_the_base(base, family):
    for strategy in ACTIVATION_STRATEGIES:
        recipe = recipe_of(base, family, strategy, is_pretrained=False)
        assert Recipe.parse(recipe.to_dict(), where="recipe") == recipe
        assert (recipe.task, recipe.steps, recipe.accumulation_steps) == (base.task, 7, 2)
        assert recipe.optimizer["lr"] == family.lr
        assert recipe_of(base, family, strategy, is_pretrained=True).optimizer["lr"] == family.tuning_lr


# Every family appears, and every strategy, and each strategy with weights that are and are not dense.
@pytest.mark.parametrize("number", range(len(FAMILIES)), ids=lambda number: FAMILIES[number].name)
def test_every_family_can_be_simulated(base, number):
    strategy = ACTIVATION_STRATEGIES[number % len(ACTIVATION_STRATEGIES)]
    recipe = recipe_of(base, FAMILIES[number], strategy, is_pretrained=False)
    assert estimate_memory(None, recipe, device="cuda").peak_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)
@pytest.mark.parametrize("strategy", ACTIVATION_STRATEGIES, ids=lambda one: one.name)
def test_every_pair_can_be_simulated(base, family, strategy):
    assert estimate_memory(None, recipe_of(base, family, strategy, is_pretrained=False), device="cuda").peak_bytes > 0


@pytest.mark.parametrize("tag", TAGS)
def test_an_excluded_tag_is_in_no_family_and_every_other_family_stays(tag):
    kept = families_without([tag])
    assert kept == [[family] for family in FAMILIES if tag not in family.tags]
    assert 0 < len(kept) < len(FAMILIES)


def test_a_cpu_tries_moments_of_16_bits_before_those_of_8(base):
    by_last = {choices[-1].name: choices for choices in families_without([], on_cpu=True)}
    assert [one.name for one in by_last["GaLore 8-bit, rank 1/4"]] == [
        "GaLore 16-bit, rank 1/4",
        "GaLore 8-bit, rank 1/4",
    ]
    assert by_last["AdamW"] == [family_called("AdamW")]
    for twin in CPU_TWINS.values():
        recipe = recipe_of(base, twin, ACTIVATION_STRATEGIES[0], is_pretrained=False)
        assert recipe.optimizer["state_bits"] == 16 and "8-bit-states" not in twin.tags
        assert family_called(twin.name) is twin
    kept = families_without(["8-bit-states"], on_cpu=True)
    assert [family_called("AdamW 16-bit")] in kept


def test_names_and_tags_are_known_and_the_first_family_gives_up_nothing():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert all(set(family.tags) <= set(TAGS) for family in FAMILIES)
    assert families_without(list(TAGS)) == [[FAMILIES[0]]] and FAMILIES[0].tags == ()


def test_an_unknown_tag_is_an_error_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"exclude='low_rank' is no tag.*Did you mean 'low-rank'"):
        families_without(["low_rank"])
