import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import ConfigError
from featherweight.planner import Target, need_of, solve
from featherweight.planner.solve import largest_within
from featherweight.training.estimate import estimate_memory

CARD = "rtx4090"


@pytest.fixture(scope="module")
def recipe(tiny):
    task = {"name": "text", "model": tiny, "corpus": "english", "seq_len": 64}
    optimizer = {"name": "galore", "rank": 4, "lr": 0.01}
    return {"task": task, "optimizer": optimizer, "steps": 2, "micro_batch_size": 1}


@given(
    pieces=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 50)), min_size=1, max_size=6),
    start=st.integers(0, 1000),
    limit=st.integers(0, 4000),
    smallest=st.integers(1, 20),
    span=st.integers(0, 200),
    step=st.integers(1, 7),
)
def test_the_largest_value_within_a_limit_is_that_of_trying_all(pieces, start, limit, smallest, span, step):
    def bytes_at(value):
        size, left = start, value
        for length, slope in pieces:
            size += slope * min(left, length)
            left = max(0, left - length)
        return size + pieces[-1][1] * left

    values = range(smallest, smallest + span + 1, step)
    fitting = [value for value in values if bytes_at(value) <= limit]
    found = largest_within(bytes_at, limit, smallest, smallest + span, step)
    assert found == (max(fitting) if fitting else None)


def test_few_tries_are_enough_on_a_line():
    tried = []
    assert largest_within(lambda value: tried.append(value) or 3 * value, 3 * 10**6, 1, 2**24, 1) == 10**6
    assert len(tried) < 10


def total(recipe, budget, **changes):
    target = Target.of(budget, CARD)
    changed = {**recipe, **changes}
    return need_of(estimate_memory(None, changed, device=target.device), target).total_bytes, target.usable_bytes


def test_the_micro_batch_fits_and_one_row_more_does_not(recipe):
    answer = solve("micro_batch", None, recipe, "640MB", device=CARD)
    assert answer.recipe.micro_batch_size == answer.value > 1
    needed, usable = total(recipe, "640MB", micro_batch_size=answer.value)
    assert needed == answer.need.total_bytes <= usable
    assert total(recipe, "640MB", micro_batch_size=answer.value + 1)[0] > usable


def test_the_sequence_fits_and_the_next_step_does_not(recipe):
    recipe = recipe | {"micro_batch_size": 8}
    long = {**recipe["task"], "model": {**recipe["task"]["model"], "max_position_embeddings": 2**20}}
    answer = solve("max_seq_len", None, recipe | {"task": long}, "640MB", device=CARD)
    assert answer.value % 128 == 0
    needed, usable = total(recipe, "640MB", task=long | {"seq_len": answer.value})
    assert needed <= usable < total(recipe, "640MB", task=long | {"seq_len": answer.value + 128})[0]


def test_a_sequence_is_no_longer_than_the_model_takes(recipe):
    assert solve("max_seq_len", None, recipe, device=CARD).value == 512


def test_the_smallest_memory_holds_the_recipe_and_less_does_not(recipe):
    answer = solve("min_memory", None, recipe, device=CARD)
    assert answer.need.fits(Target.of(answer.value, CARD))
    assert not answer.need.fits(Target.of(answer.value - 4, CARD))


@pytest.mark.slow
def test_every_rank_fits_a_large_card(recipe):
    answer = solve("rank", None, recipe, device=CARD)
    assert answer.value == answer.recipe.optimizer["rank"] >= 64


def test_wrong_questions_are_errors(recipe):
    with pytest.raises(ConfigError, match=r"unknown='micro_bach' cannot be solved for.*Did you mean 'micro_batch'"):
        solve("micro_bach", None, recipe, device=CARD)
    with pytest.raises(ConfigError, match="unknown=rank does not go with optimizer=adamw"):
        solve("rank", None, recipe | {"optimizer": {"name": "adamw", "lr": 0.1}}, device=CARD)
    with pytest.raises(ConfigError, match="micro_batch_size=1 already needs"):
        solve("micro_batch", None, recipe, "100MB", device=CARD)
