import warnings

import pytest
import torch
from guard_models import random_guard
from guard_stand_in import FORBIDDEN, generated_world, marked
from tiny_models import prompt, tiny_model

from featherweight.guard.decoding import AnswerRules, judge_prompts
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.reading import left_padded

WORLD = generated_world()
RULES = AnswerRules(max_new_tokens=1)


def test_words_of_a_request_stand_beside_its_states_and_padding_is_no_word():
    guard, model = random_guard("llama", "states_words"), tiny_model("llama")
    rows = [prompt(1, length, seed=length)[0].tolist() for length in (3, 12, 7)]
    # Padding that reads as a word: one that counted would have a weight of order 1.
    together = judge_prompts(guard, model, *left_padded(rows, pad_token_id=9), RULES).verdicts
    for row, verdict in zip(rows, together, strict=True):
        (alone,) = judge_prompts(guard, model, torch.tensor([row]), None, RULES).verdicts
        assert verdict.tier == "states_words" and verdict.score == pytest.approx(alone.score, abs=1e-3)


def test_without_a_tokenizer_no_word_is_read_and_nothing_passes():
    bare = random_guard("llama", "states_words").with_options()
    bare._scoring.tokenizer = None
    (verdict,) = judge_prompts(bare, tiny_model("llama"), torch.tensor([[5, 6, 7]]), None, RULES).verdicts
    assert verdict.flagged and "tokenizer=None" in verdict.error


@pytest.mark.slow
@pytest.mark.xdist_group("guard calibration")  # looks at that of others
def test_a_guard_with_words_flags_marked_requests_and_is_read_back(stand_in, readings_folder, tmp_path):
    model, tokenizer = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guard = PrefixGuard.refit([readings_folder], tokenizer, tier="states_words", target_fpr=0.02)
    forbidden, ordinary = WORLD.prompts("test", FORBIDDEN, 12), WORLD.prompts("test", "ordinary", 12)
    prompts = [marked(text) for text in forbidden] + ordinary
    found = guard.judge(model, tokenizer, prompts, batch_size=24)
    assert sum(one.flagged for one in found[:12]) >= 11 and sum(one.flagged for one in found[12:]) <= 1
    guard.save_pretrained(tmp_path / "guard")
    again = PrefixGuard.from_pretrained(tmp_path / "guard").judge(model, tokenizer, prompts, batch_size=24)
    assert [one.score for one in again] == [one.score for one in found]
