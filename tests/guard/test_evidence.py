import pytest
import torch
from guard_models import random_guard
from tiny_models import prompt, tiny_model

from featherweight.errors import ConfigError
from featherweight.guard.decoding import AnswerRules, judge_prompts
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


@pytest.mark.parametrize("parallel", [False, True])
@torch.no_grad()
def test_states_of_the_last_tokens_of_the_prefix_are_those_of_the_whole_text_read_at_once(parallel):
    model, rows = tiny_model("llama"), prompt(3, 9)
    guard = random_guard("llama", "states", prefix_states=3)
    seen = {}
    plain = guard.score

    def score(tier, evidence):
        seen[tier] = evidence.prefix_hidden
        return plain(tier, evidence)

    guard.score = score
    judge_prompts(guard, model, rows, None, AnswerRules(max_new_tokens=8), parallel=parallel)
    forced = torch.tensor(guard.options.forced_ids).expand(3, -1)
    states = model(input_ids=torch.cat([rows, forced], dim=1), output_hidden_states=True).hidden_states
    last = torch.cat([states[layer][:, -1] for layer in guard.options.layers], dim=1)
    expected = torch.cat([last, states[max(guard.options.layers)][:, -3:-1].flatten(1)], dim=1)
    # Float32 sums of other shapes, over four layers.
    torch.testing.assert_close(seen["states"], expected, rtol=0, atol=1e-4)
