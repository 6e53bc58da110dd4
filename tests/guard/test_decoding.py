"""The exact identities of guarded generation, on models with random weights, in float32."""

import math

import pytest
import torch
from guard_models import PREFIX, all_evidence, random_guard, word_tokenizer
from tiny_models import CROPPED, RECURRENT, prompt, tiny_model

from featherweight.guard.decoding import AnswerRules, answers, judge_prompts
from featherweight.guard.guarded_model import GuardedModel
from featherweight.guard.reading import left_padded
from featherweight.guard.verdict import predict_costs
from featherweight.models.generation import prefill

EVERY = [*CROPPED, *RECURRENT]
COUNT = 10
# Logits of order 10 in float32, of which four layers summed in another order change the last digits.
ROUNDING = 1e-4


def stock(model, ids, count=COUNT, **options):
    return model.generate(ids, max_new_tokens=count, **{"do_sample": False, "pad_token_id": 0, **options})


def guarded(name, guard, ids, **options):
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": COUNT, **options}
    return GuardedModel(tiny_model(name), word_tokenizer(), guard).generate(ids, return_guard=True, **options)


def forwards_of(model):
    """Counts the tokens of every forward pass, those of every row."""
    counted = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: counted.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return counted, hook


@pytest.mark.parametrize("branch", ["sequential", "parallel"])
@pytest.mark.parametrize("name", [*EVERY, "multi_query"])
def test_what_passes_gets_the_tokens_that_it_would_get_without_a_guard(name, branch):
    ids = prompt(6, 9)
    guard = random_guard(name, branch=branch)
    output, plain = guarded(name, guard, ids), stock(tiny_model(name), ids)
    passed = [row for row, verdict in enumerate(output.guard) if not verdict.flagged]
    assert 0 < len(passed) < 6
    assert torch.equal(output.sequences[passed], plain[passed])
    for row in set(range(6)) - set(passed):
        assert output.sequences[row, 9:12].tolist() == [12, 13, 0]  # the refusal and the end of a reply


@pytest.mark.parametrize("tier", ["prefix_hidden", "next_token", "probe"])
def test_every_tier_lets_tokens_pass_unchanged(tier):
    ids = prompt(6, 9)
    guard = random_guard("llama", tier)
    output, plain = guarded("llama", guard, ids), stock(tiny_model("llama"), ids)
    passed = [row for row, verdict in enumerate(output.guard) if not verdict.flagged]
    assert 0 < len(passed) < 6 and torch.equal(output.sequences[passed], plain[passed])
    assert {verdict.tier for verdict in output.guard} == {tier}


@pytest.mark.parametrize("branch", ["sequential", "parallel"])
def test_a_sampled_answer_has_the_words_of_its_seed_with_and_without_a_guard(branch):
    model, ids = tiny_model("llama"), prompt(1, 9)
    guard = random_guard("llama", branch=branch).with_threshold(math.inf)
    for seed in range(3):
        torch.manual_seed(seed)
        plain = stock(model, ids, do_sample=True, temperature=0.8, top_p=0.9)
        torch.manual_seed(seed)
        output = guarded("llama", guard, ids, do_sample=True, temperature=0.8, top_p=0.9)
        assert torch.equal(output.sequences, plain)


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba2"])
def test_an_infinite_threshold_lets_all_pass_and_its_opposite_emits_no_token_of_the_model(name):
    ids, guard = prompt(4, 9), random_guard(name)
    assert torch.equal(guarded(name, guard.with_threshold(math.inf), ids).sequences, stock(tiny_model(name), ids))
    refused = guarded(name, guard.with_threshold(-math.inf), ids)
    assert all(verdict.flagged for verdict in refused.guard)
    assert refused.sequences[:, 9:].tolist() == [[12, 13, 0]] * 4


@pytest.mark.parametrize("name", EVERY)
def test_a_probe_on_the_cached_prompt_is_the_greedy_continuation_from_nothing(name):
    model, ids = tiny_model(name), prompt(3, 9)
    evidence = all_evidence(random_guard(name), model, ids)
    whole = torch.cat([ids, torch.tensor(PREFIX).expand(3, -1)], dim=1)
    expected = stock(model, whole, 5)[:, whole.shape[1] :]
    assert evidence.probe_ids == expected.tolist()


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_next"])
def test_the_likelihood_of_the_prefix_on_the_cache_is_that_of_a_teacher_forced_pass(name):
    model, ids = tiny_model(name), prompt(3, 9)
    evidence = all_evidence(random_guard(name), model, ids)
    whole = torch.cat([ids, torch.tensor(PREFIX).expand(3, -1)], dim=1)
    with torch.no_grad():
        shares = model(input_ids=whole, use_cache=False).logits.float().log_softmax(dim=2)
    expected = shares[:, 8:-1].gather(2, whole[:, 9:, None]).sum(dim=(1, 2))
    # Mutation: the first token of the prefix scored with the logits after it changes the first digit.
    torch.testing.assert_close(evidence.prefix_logprob, expected, rtol=0, atol=4 * ROUNDING)


@pytest.mark.parametrize("name", CROPPED)
def test_after_the_verdict_keys_and_values_are_bit_for_bit_those_of_the_prompt(name):
    model, ids, guard = tiny_model(name), prompt(2, 9), random_guard(name).with_threshold(math.inf)
    judged = judge_prompts(guard, model, ids, None, AnswerRules(max_new_tokens=COUNT))
    fresh = prefill(model, ids, output_hidden_states=True)
    assert judged.decoding.length == judged.decoding.cache.get_seq_length() == 9
    for layer, expected in zip(judged.decoding.cache.layers, fresh.cache.layers, strict=True):
        width = min(layer.keys.shape[-2], expected.keys.shape[-2])
        assert torch.equal(layer.keys[..., -width:, :], expected.keys[..., -width:, :])
        assert torch.equal(layer.values[..., -width:, :], expected.values[..., -width:, :])
    assert torch.equal(judged.decoding.logits, fresh.logits)


def test_side_by_side_and_one_after_the_other_agree_in_verdicts_answers_and_cache():
    model, ids = tiny_model("llama"), prompt(5, 9)
    found = {}
    for parallel in (False, True):
        guard, rules = random_guard("llama"), AnswerRules(max_new_tokens=COUNT)
        judged = judge_prompts(guard, model, ids, None, rules, parallel=parallel)
        tokens = torch.stack(list(answers(judged, rules)), dim=1)
        found[parallel] = judged, tokens
    (one, tokens), (other, same) = found[False], found[True]
    assert one.answered == other.answered and 0 < len(one.answered) < 5
    assert torch.equal(tokens, same)
    for before, after in zip(one.verdicts, other.verdicts, strict=True):
        assert (before.flagged, before.probe_tokens) == (after.flagged, after.probe_tokens)
        assert before.score == pytest.approx(after.score, abs=1e-3)
    # The masked places are gone, and what stays is what the sequential branch holds.
    for layer, expected in zip(other.decoding.cache.layers, one.decoding.cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("branch", ["sequential", "parallel"])
@pytest.mark.parametrize("name", ["llama", "mistral", "mamba2"])
def test_a_padded_batch_gets_the_verdicts_and_answers_of_single_requests_in_order(name, branch):
    rows = [prompt(1, length, seed=length)[0].tolist() for length in (3, 9, 5, 12)]
    ids, mask = left_padded(rows)
    guard = random_guard(name, branch=branch)
    together = guarded(name, guard, ids, attention_mask=mask)
    for place, row in enumerate(rows):
        alone = guarded(name, guard, torch.tensor([row]))
        assert alone.guard[0].flagged == together.guard[place].flagged
        new = together.sequences[place, ids.shape[1] :][: alone.sequences.shape[1] - len(row)]
        assert torch.equal(new, alone.sequences[0, len(row) :])


@pytest.mark.parametrize("flagged_count", [0, 1, 4, 5])
def test_replies_stand_in_the_order_of_the_requests_however_many_are_flagged(flagged_count):
    ids, guard = prompt(5, 9), random_guard("llama")
    scores = sorted(verdict.score for verdict in guarded("llama", guard, ids).guard)
    edges = [-math.inf, *((low + high) / 2 for low, high in zip(scores, scores[1:], strict=False)), math.inf]
    output = guarded("llama", guard.with_threshold(edges[5 - flagged_count]), ids)
    plain = stock(tiny_model("llama"), ids)
    assert sum(verdict.flagged for verdict in output.guard) == flagged_count
    for row, verdict in enumerate(output.guard):
        assert verdict.flagged or torch.equal(output.sequences[row], plain[row])
        assert not verdict.flagged or output.sequences[row, 9:12].tolist() == [12, 13, 0]


@pytest.mark.parametrize(
    ("tier", "branch", "probe_tokens"),
    [("prefix_hidden", "sequential", 0), ("probe_hidden", "sequential", 7), ("probe_hidden", "parallel", 7)],
)
def test_token_forwards_are_those_of_the_formula(tier, branch, probe_tokens):
    model, ids = tiny_model("llama"), prompt(1, 30)
    guard = random_guard("llama", tier, probe_tokens=7).with_threshold(math.inf)
    counted, hook = forwards_of(model)
    rules = AnswerRules(max_new_tokens=20)
    try:
        judged = judge_prompts(guard, model, ids, None, rules, parallel=branch == "parallel")
        assert len(list(answers(judged, rules))) == 20
    finally:
        hook.remove()
    predicted = predict_costs(30, len(PREFIX), probe_tokens, 20, parallel=branch == "parallel")
    assert sum(counted) == judged.costs.token_forwards == predicted.token_forwards
    assert judged.costs == predicted
    # Side by side, the answer is as many steps away as without a guard.
    assert len(counted) == 20 + predicted.extra_steps


def test_no_token_reaches_a_streamer_before_the_verdict_and_none_of_a_flagged_request_ever():
    from transformers.generation.streamers import BaseStreamer

    class Recorder(BaseStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen.append((len(counted), value.reshape(-1).tolist()))

        def end(self):
            self.seen.append(None)

    model, ids, guard = tiny_model("llama"), prompt(1, 9), random_guard("llama")
    for limit in (math.inf, -math.inf):
        for branch in ("sequential", "parallel"):
            counted, hook = forwards_of(model)
            recorder = Recorder()
            guarded("llama", guard.with_threshold(limit).with_options(branch=branch), ids, streamer=recorder)
            hook.remove()
            # 1 prompt, 1 prefix, 4 probe tokens were read before the first of the answer came.
            assert recorder.seen[1][0] == 6 and recorder.seen[-1] is None
            shown = [token for entry in recorder.seen[1:-1] for token in entry[1]]
            expected = stock(model, ids)[0, 9:].tolist() if limit == math.inf else [12, 13, 0]
            assert shown == expected


def test_the_beginning_of_an_answer_that_the_caller_gives_does_not_change_the_verdict():
    guard = random_guard("llama")
    model = GuardedModel(tiny_model("llama"), word_tokenizer(), guard)
    turns = [{"role": "user", "content": "w3 w9 w1"}]
    begun = {"role": "assistant", "content": "w2 w2"}
    plain = "".join(model.stream(turns, max_new_tokens=4))
    verdict = model.verdict
    steered = "".join(model.stream([*turns, begun], max_new_tokens=4))
    assert model.verdict == verdict
    open_guard = guard.with_threshold(math.inf)
    free = GuardedModel(tiny_model("llama"), word_tokenizer(), open_guard)
    # It does steer the answer, if there is one.
    assert free.chat(turns, max_new_tokens=4) != free.chat([*turns, begun], max_new_tokens=4)
    assert (plain == steered) == verdict.flagged


def test_a_reply_that_ends_inside_of_the_probe_is_final():
    model, ids = tiny_model("llama"), prompt(1, 9)
    guard = random_guard("llama", probe_tokens=6)
    free = all_evidence(guard, model, ids).probe_ids[0]
    ended = all_evidence(guard, model, ids, stops=(free[2],))
    assert ended.probe_ids[0] == free[: free.index(free[2])] and ended.probe_ended == [True]


def test_shadow_mode_answers_everything_and_reports_what_it_would_have_flagged():
    ids, guard = prompt(4, 9), random_guard("llama", on_flag="annotate").with_threshold(-math.inf)
    output = guarded("llama", guard, ids)
    assert all(verdict.flagged for verdict in output.guard)
    assert torch.equal(output.sequences, stock(tiny_model("llama"), ids))


def test_a_callback_writes_the_reply_and_none_means_the_refusal_text():
    ids, guard = prompt(2, 9), random_guard("llama", on_flag="callback").with_threshold(-math.inf)
    guard.callback = lambda request, verdict: "w1 w2" if request == ids[0].tolist() else None
    new = guarded("llama", guard, ids).sequences[:, 9:].tolist()
    assert new == [[6, 7, 0], [12, 13, 0]]


def test_a_request_that_cannot_be_judged_is_blocked():
    ids, guard = prompt(3, 9), random_guard("llama")
    guard._scoring.scores["probe_hidden"].weight.fill_(math.nan)
    output = guarded("llama", guard, ids)
    assert all(one.flagged and one.error == "the score is not a finite number" for one in output.guard)
    del guard._scoring.scores["probe_hidden"]
    output = guarded("llama", guard, ids)
    assert all(one.flagged and "has no score" in one.error for one in output.guard)
    assert output.sequences[:, 9:].tolist() == [[12, 13, 0]] * 3
