"""The tier `continuation`: which openings are compared, how likely they are, and that nothing else changes."""

import math

import pytest
import torch
from guard_models import PREFIX, random_guard, word_tokenizer
from tiny_models import prompt, tiny_model

from featherweight.errors import ConfigError
from featherweight.guard.decoding import AnswerRules, answers, judge_prompts
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.linear import Linear
from featherweight.guard.openings import choose_openings, continuation_features, opening_logprobs
from featherweight.guard.options import GuardOptions
from featherweight.guard.verdict import predict_costs
from featherweight.models.generation import extend, generate, prefill

POLICY, OTHER = ((1, 2, 3), (4, 5, 6)), ((7, 8, 9),)


def continuation_guard(flag_above=0.0, **options):
    settings = {"prefix_text": "w0 w4 w9 w15", "prefix_ids": PREFIX, "refusal_text": "w7 w8", "branch": "sequential"}
    stages = [{"tier": "continuation", "flag_above": flag_above}]
    options = {**settings, "policy_openings": POLICY, "other_openings": OTHER, "stages": stages, **options}
    score = Linear(torch.zeros(1), torch.ones(1), torch.ones(1), torch.zeros(()))
    guard = PrefixGuard(GuardOptions(**options), {"continuation": score})
    return guard.bind(tiny_model("llama"), word_tokenizer())


def uncached_logprob(model, row, opening):
    """Teacher-forced, from nothing."""
    ids = torch.cat([row, torch.tensor([*PREFIX, *opening])])[None]
    shares = model(input_ids=ids).logits[0].log_softmax(dim=1)
    start = len(row) + len(PREFIX)
    return float(sum(shares[start + place - 1, token] for place, token in enumerate(opening)))


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba2"])
@torch.no_grad()
def test_the_likelihood_of_an_opening_is_that_of_the_whole_text_read_at_once(name):
    model, rows = tiny_model(name), prompt(3, 9)
    decoding = prefill(model, rows)
    extend(decoding, torch.tensor(PREFIX))
    length, logits = decoding.length, decoding.logits.clone()
    found = opening_logprobs(decoding, (*POLICY, *OTHER))
    expected = [[uncached_logprob(model, row, one) for one in (*POLICY, *OTHER)] for row in rows]
    # Twice the largest difference of cached and uncached log-likelihoods in float32.
    assert torch.allclose(found, torch.tensor(expected), atol=2e-4)
    assert decoding.length == length and torch.equal(decoding.logits, logits)


def test_rows_are_read_in_groups_with_the_same_result(monkeypatch):
    decoding = prefill(tiny_model("llama"), prompt(3, 9))
    whole = opening_logprobs(decoding, (*POLICY, *OTHER))
    monkeypatch.setattr("featherweight.guard.openings._ROWS", 3)
    # Float32 sums of batches of other sizes.
    assert torch.allclose(opening_logprobs(decoding, (*POLICY, *OTHER)), whole, atol=1e-5)


def test_the_score_is_the_log_odds_of_policy_openings_against_the_others():
    found = continuation_features(torch.tensor([[0.5, 0.25, 0.125]]).log(), 2)
    assert found.shape == (1, 1) and float(found) == pytest.approx(math.log(0.75 / 0.125))


def test_the_commonest_openings_of_each_class_are_chosen_and_one_of_both_counts_where_it_is_more_frequent():
    probes = [[1, 2, 3, 4, 5, 6]] * 3 + [[9, 2, 3, 4, 5]] * 2 + [[1, 2, 3, 4, 5]] + [[7, 7, 7, 7, 7]] * 4 + [[8]]
    labels = [1] * 3 + [1] * 2 + [0] + [0] * 4 + [0]
    policy, other = choose_openings(probes, labels)
    assert policy == ((1, 2, 3, 4, 5), (9, 2, 3, 4, 5))
    assert other == ((7, 7, 7, 7, 7),)
    many = [[index] * 5 for index in range(20) for _ in range(1 + index % 2)]
    assert len(choose_openings([*many, [50] * 5], [1] * len(many) + [0])[0]) == 6


def test_classes_that_go_on_alike_are_refused():
    with pytest.raises(ConfigError, match="finds no opening of its own"):
        choose_openings([[1, 2]] * 4, [1, 1, 0, 0])


def test_what_passes_gets_its_own_answer_and_every_forward_is_counted():
    model, rows = tiny_model("llama"), prompt(1, 9)
    guard, rules = continuation_guard().with_threshold(math.inf), AnswerRules(max_new_tokens=6)
    forwards = 0

    def count(module, arguments, options, output):
        nonlocal forwards
        forwards += options["input_ids"].numel()

    handle = model.register_forward_hook(count, with_kwargs=True)
    try:
        judged = judge_prompts(guard, model, rows, None, rules)
        written = torch.stack(list(answers(judged, rules)), dim=1)
    finally:
        handle.remove()
    assert torch.equal(written, generate(prefill(model, rows), max_new_tokens=6))
    predicted = predict_costs(9, len(PREFIX), 0, 6, openings=(3, 3))
    assert judged.costs == predicted and forwards == predicted.token_forwards == 9 + 4 + 3 * 2 + 5
    assert judged.costs.extra_steps == 2


def test_verdicts_of_a_padded_batch_are_those_of_single_requests():
    model, guard, rules = tiny_model("llama"), continuation_guard(), AnswerRules(max_new_tokens=1)
    rows = prompt(6, 9)
    mask = torch.ones_like(rows)
    mask[::2, :3] = 0
    together = judge_prompts(guard, model, rows, mask, rules, parallel=True).verdicts
    alone = [
        judge_prompts(guard, model, row[keep.bool()][None], None, rules).verdicts[0]
        for row, keep in zip(rows, mask, strict=True)
    ]
    assert [one.flagged for one in together] == [one.flagged for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-4)
    assert {one.probe_tokens for one in together} == {0}


def test_a_first_look_at_openings_may_stand_before_a_probe():
    guard = random_guard("llama")
    stages = [{"tier": "continuation", "flag_above": 1e9, "clear_at_most": -1e9}, *guard.options.to_dict()["stages"]]
    both = guard.with_options(policy_openings=POLICY, other_openings=OTHER, stages=stages)
    both._scoring.scores["continuation"] = continuation_guard().linear("continuation")
    texts = [f"w{index} w1" for index in range(6)]
    model, tokenizer = tiny_model("llama"), word_tokenizer()
    assert both.judge(model, tokenizer, texts) == guard.judge(model, tokenizer, texts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"other_openings": ()}, "needs policy_openings and other_openings"),
        ({"other_openings": ((1, 2),)}, "must have one length"),
        ({"other_openings": ((),)}, "must have one length"),
    ],
)
def test_settings_that_fit_no_tier_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        GuardOptions.parse({**continuation_guard().options.to_dict(), **changes})
