import pytest
import torch
from guard_stand_in import BORDERLINE, FORBIDDEN, PREFIX, generated_world, load_fixture

from featherweight.guard.options import GuardOptions
from featherweight.guard.prefix import prefix_ids
from featherweight.guard.prefix_search import TOPICS, least_error, likeliest, search_prefix

WORLD = generated_world()


@pytest.mark.slow
def test_the_search_finds_how_the_model_refuses_and_puts_the_least_error_first():
    model, tokenizer = load_fixture()
    _, ids = prefix_ids(tokenizer, PREFIX)
    stages = [{"tier": "probe_hidden"}]
    base = GuardOptions(prefix_text=PREFIX, prefix_ids=ids, layers=[1, 2, 3], probe_tokens=4, stages=stages)
    benign = WORLD.prompts("val", "ordinary", 15) + WORLD.prompts("val", BORDERLINE, 5)
    found = search_prefix(base, model, tokenizer, WORLD.prompts("val", FORBIDDEN, 20), benign, vocabulary_size=50)
    assert [one.error for one in found] == sorted(one.error for one in found)
    own = [one for one in found if one.text.startswith("I'm sorry, but") and one.text != PREFIX]
    assert own and all(one.is_refusal for one in own)
    assert [one.is_refusal for one in found if one.text in TOPICS] == [False, False]
    shown = search_prefix(
        GuardOptions.parse({**base.to_dict(), "on_flag": "truncate"}),
        model,
        tokenizer,
        WORLD.prompts("val", FORBIDDEN, 20),
        benign,
        vocabulary_size=50,
    )
    assert not {*TOPICS} & {one.text for one in shown}


def test_the_least_error_is_that_of_a_scan():
    scores, labels = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 0, 1, 0])
    assert least_error(scores, labels) == 0.25
    assert least_error(scores, 1 - labels) == 0.5


def test_the_likeliest_tokens_are_counted_over_all_requests():
    assert likeliest(torch.tensor([[4, 9], [9, 2], [9, 4]]), 2).tolist() == [4, 9]


def test_of_equal_openings_the_shortest_wins_that_is_long_enough_to_bring_a_model_back():
    from featherweight.guard.prefix_search import Candidate, _rank

    found = [Candidate("", tuple(range(count)), True, error, 1.0) for count, error in ((3, 0.0), (9, 0.0), (7, 0.0))]
    assert [len(one.ids) for one in sorted(found, key=_rank)] == [7, 9, 3]
    better = Candidate("", (1,), True, -1.0, 1.0)
    assert min([*found, better], key=_rank) is better
