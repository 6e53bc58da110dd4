import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.guard.evidence import (
    Evidence,
    hidden_features,
    join_evidence,
    next_token_features,
    prefix_logprob,
    required,
    take_evidence,
)


def test_the_likelihood_of_a_prefix_is_the_product_of_its_tokens():
    before = torch.tensor([[0.0, 1.0, 2.0]])
    after = torch.tensor([[[3.0, 0.0, 1.0], [9.0, 9.0, 9.0]]])
    expected = before.log_softmax(1)[0, 2] + after.log_softmax(2)[0, 0, 1]
    torch.testing.assert_close(prefix_logprob(before, after, torch.tensor([2, 1])), expected[None])


def test_tokens_that_were_not_among_the_likeliest_count_as_the_least_likely_that_was():
    evidence = Evidence(next_ids=torch.tensor([[4, 9]]), next_logprobs=torch.tensor([[-0.5, -2.0]]))
    assert next_token_features(evidence, torch.tensor([9, 7, 4])).tolist() == [[-2.0, -2.0, -0.5]]


def test_rows_join_and_are_taken_in_any_order():
    parts = [Evidence(probe_hidden=torch.full((1, 2), value), probe_ids=[[int(value)]]) for value in (1.0, 2.0)]
    parts[0].probe_ended, parts[1].probe_ended = [True], [False]
    taken = take_evidence(join_evidence(parts), [1, 0])
    assert taken.probe_hidden[:, 0].tolist() == [2, 1] and taken.probe_ids == [[2], [1]]
    assert taken.probe_ended == [False, True] and taken.prompt_hidden is None


def test_hidden_states_of_chosen_layers_stand_side_by_side_in_float32():
    states = tuple(torch.full((1, 2), value, dtype=torch.bfloat16) for value in (0.0, 1.0, 2.0))
    found = hidden_features(states, (2, 0))
    assert found.tolist() == [[2, 2, 0, 0]] and found.dtype == torch.float32


def test_what_was_not_read_is_told():
    with pytest.raises(ConfigError, match="evidence=prompt_hidden was not read"):
        required(Evidence(), "prompt_hidden")
