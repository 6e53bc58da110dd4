"""What the published code of the method gets wrong, and the tests that keep it out.

Others of its list: `test_decoding`, `test_prefix`, `test_reading`, `test_storage`, `test_calibration`.
"""

import inspect

import pytest
import torch
from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, load_text_guard

from featherweight.guard import calibration, evaluation
from featherweight.guard.guarded_model import GuardedModel
from featherweight.guard.scoring import Scoring
from featherweight.guard.text_verdict import judge_text

WORLD = generated_world()


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
    assert "fingerprint(model, tokenizer)" in inspect.getsource(calibration.calibrate)
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
