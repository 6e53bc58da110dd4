"""What the published code of the method gets wrong, and the tests that keep it out; the identities that must hold."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, load_text_guard

from featherweight.guard import evaluation
from featherweight.guard.fingerprint import fingerprint
from featherweight.guard.guarded_model import GuardedModel
from featherweight.guard.scoring import Scoring
from featherweight.guard.text_verdict import judge_text

WORLD = generated_world()
TESTS = Path(__file__).parents[1]
FAULTS = {
    "texts of the fit hold the prefix, those of use do not": "guard/test_known_faults one_function_makes_the_text",
    "decoded strings are cut by character counts": "guard/test_prefix a_prefix_has_the_same_tokens_behind_every_prompt",
    "one classifier serves all models": "guard/test_known_faults one_classifier_for_all_models_is_refused",
    "classes are probed with different prefixes": "guard/test_readings classes_that_were_probed_with_different",
    "the sign of the end stands in the text": "guard/test_known_faults special_tokens_never_stand_in_the_text",
    "an ended reply is continued": "guard/test_decoding a_reply_that_ends_inside_of_the_probe_is_final",
    "the learning rate comes back up": "guard/test_finetuned the_rate_rises_falls_and_never_rises_again",
    "dropout is off, nothing is held out": "guard/test_finetuned dropout_is_on_while_it_trains",
    "weights are pickles": "guard/test_calibration a_written_guard_says_the_same_to_the_last_bit",
    "the probe is sampled": "guard/test_known_faults verdicts_do_not_depend_on_the_random_numbers",
    "the prompt is read twice": "guard/test_decoding token_forwards_are_those_of_the_formula",
    "data cannot be built again": "guard/test_prompt_files prompts_are_read_under_the_names",
    "what no judge could read counts as safe": "guard/test_known_faults what_cannot_be_judged_is_counted",
    "refusals are counted by words": "guard/test_evaluation new_prompts_are_counted_with_intervals",
    "the answer is not timed": "guard/test_latency every_phase_is_timed_for_every_request",
    "no look-alikes, long answers or conversations": "guard/test_known_faults a_conversation_is_judged_as_a_whole",
}
"""Fault -> file and beginning of the test that fails with it."""
IDENTITIES = {
    "what passes is what would be without a guard": "guard/test_decoding what_passes_gets_the_tokens",
    "an infinite threshold is no guard": "guard/test_decoding an_infinite_threshold_lets_all_pass",
    "cached and uncached probes agree": "guard/test_decoding a_probe_on_the_cached_prompt_is_the_greedy",
    "the likelihood of the prefix is teacher-forced": "guard/test_decoding the_likelihood_of_the_prefix_on_the_cache",
    "a crop gives the same bits": "guard/test_decoding after_the_verdict_keys_and_values_are_bit_for_bit",
    "parallel is sequential": "guard/test_decoding side_by_side_and_one_after_the_other_agree",
    "batches are single requests": "guard/test_decoding a_padded_batch_gets_the_verdicts_and_answers",
    "the order is kept": "guard/test_decoding replies_stand_in_the_order_of_the_requests",
    "token-forwards are counted": "guard/test_decoding token_forwards_are_those_of_the_formula",
    "AUROC is Mann-Whitney": "guard/test_metrics auroc_is_the_share_of_ordered_pairs",
    "thresholds keep their promise": "guard/test_metrics conformal_thresholds_keep_their_promise",
    "files say the same": "guard/test_storage a_guard_is_written_and_read_bit_for_bit",
    "nothing leaves early": "guard/test_decoding no_token_reaches_a_streamer_before_the_verdict",
    "nothing leaves early over HTTP": "serving/test_app many_mixed_requests_at_once_are_neither_lost",
    "a given beginning does not steer the verdict": "guard/test_decoding the_beginning_of_an_answer",
}
"""What must hold exactly -> the test that shows it."""


@pytest.mark.parametrize("claims", [FAULTS, IDENTITIES], ids=["faults", "identities"])
def test_every_claim_has_its_test(claims):
    for claim, place in claims.items():
        file, name = place.split(" ")
        source = (TESTS / f"{file}.py").read_text(encoding="utf-8")
        assert len(re.findall(rf"^def test_{name}\w*\(", source, re.MULTILINE)) == 1, claim


def test_one_function_makes_the_text_of_fit_and_use_so_that_the_prefix_is_in_both_or_in_neither():
    guard = load_text_guard().bind(*load_fixture())
    model, tokenizer = load_fixture()
    for prompt in WORLD.prompts("test", FORBIDDEN, 3):
        verdict = guard.with_options(early_exit=[]).judge(model, tokenizer, [prompt])[0]
        ended = verdict.probe_tokens < guard.options.probe_tokens
        assert judge_text(guard, verdict.probe_text, ended=ended).score == pytest.approx(verdict.score, abs=1e-5)
    source = inspect.getsource(Scoring)
    assert source.count("classified_text(") == 1


def test_special_tokens_never_stand_in_the_text_of_a_probe():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    assert guard.probe_text([tokenizer.eos_token_id, *tokenizer("Hi", add_special_tokens=False)["input_ids"]]) == "Hi"


def test_verdicts_do_not_depend_on_the_random_numbers_or_the_sampling_of_the_checkpoint():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    prompts = WORLD.prompts("test", FORBIDDEN, 3)
    state = torch.random.get_rng_state()
    first = guard.judge(model, tokenizer, prompts)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(5)
    assert guard.judge(model, tokenizer, prompts) == first


def test_one_classifier_for_all_models_is_refused_unless_asked_for():
    assert load_guard().fingerprints == fingerprint(*load_fixture())
    with pytest.raises(RuntimeError, match="Calibrate again"):
        other = load_fixture()[0]
        other.model.embed_tokens.weight.data.mul_(2)
        GuardedModel(other, load_fixture()[1], load_guard())


def test_what_cannot_be_judged_is_counted_and_never_taken_for_safe():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    guard.linear("probe_hidden").weight.fill_(float("nan"))
    report = evaluation.evaluate_guard(guard, model, tokenizer, harmful=["a b"], benign=["c d"])
    assert [row[-1] for row in report.section("Flagged").rows] == [1, 1]
    assert [row[2] for row in report.section("Flagged").rows] == [1, 1]


def test_a_conversation_is_judged_as_a_whole_and_not_by_its_last_turn():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    first, last = WORLD.prompts("test", "ordinary", 2)
    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": "Sure."}]
    whole, alone = guard.judge(model, tokenizer, [[*turns, {"role": "user", "content": last}], last])
    assert whole.score != alone.score
