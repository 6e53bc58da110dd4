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

FUNCTIONS = {
    "sliding windows, recurrent states, shared key heads, tied embeddings": "guard/test_decoding what_passes_gets",
    "bf16 and PEFT": "guard/test_guarded_model a_model_in_bf16_and_one_inside_peft",
    "8-bit weights": "guard/test_guarded_model a_model_with_int8_weights",
    "a prefix that merges with the prompt": "guard/test_prefix where_a_token_would_reach_over_the_boundary",
    "Unicode and empty prompts": "guard/test_prefix any_text_can_be_judged",
    "a context that is too short": "guard/test_room a_probe_that_has_no_room_is_shorter",
    "the official client": "serving/test_app the_official_client_gets_the_answer",
    "the official client, streamed": "serving/test_app a_stream_has_the_same_words",
    "content_filter on a flag": "serving/test_app a_flagged_request_gets_a_refusal",
    "a client that goes away": "serving/test_engine a_request_that_is_cancelled_leaves",
    "a client that breaks off": "serving/test_app a_client_that_breaks_off",
    "mixed requests at once": "serving/test_app many_mixed_requests_at_once",
    "fail closed": "serving/test_app what_cannot_be_judged_is_blocked",
    "metrics": "serving/test_app the_model_is_listed_and_metrics",
    "any request": "serving/test_fuzz no_request_makes_the_server_fail",
    "flat memory": "serving/test_app memory_stays_flat",
    "SIGTERM and kill": "serving/test_server the_process_ends_its_streams",
    "the proxy before our server": "serving/test_proxy what_passes_gets_the_engines_own_answer",
    "the proxy before llama.cpp": "serving/test_llama_cpp the_proxy_judges_what_llama_cpp_writes",
    "the page": "serving/test_page a_person_chats_by_keyboard",
}
"""What must work -> the test that shows it."""
REFUSALS = {
    "a guard of another model, tokenizer or template": "guard/test_fingerprint a_guard_of_another_model",
    "few prompts, a prompt in two classes": "guard/test_calibration what_cannot_be_calibrated_is_refused",
    "a prompt in two files": "guard/test_prompt_files a_prompt_in_two_classes_is_refused",
    "probes with different prefixes": "guard/test_readings classes_that_were_probed_with_different",
    "no chat template": "guard/test_calibration a_tokenizer_without_a_chat_template",
    "beams and assistants": "guard/test_decoding_loop stock_generate_takes_the_loop",
    "encoder-decoders": "guard/test_decoding_loop an_encoder_decoder_is_refused",
    "scores that are no numbers": "guard/test_probe scores_that_are_no_numbers",
    "damaged files": "guard/test_storage damaged_folders_are_refused",
    "unknown columns": "guard/test_prompt_files what_is_no_prompt_is_refused",
    "what cannot be judged": "guard/test_decoding a_request_that_cannot_be_judged_is_blocked",
}
"""Bad input -> the test of the sentence that it gets."""
CLAIMS = {"faults": FAULTS, "identities": IDENTITIES, "functions": FUNCTIONS, "refusals": REFUSALS}


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
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
