import warnings

import pytest
import torch
from guard_stand_in import FORBIDDEN, generated_world, marked

from featherweight.guard.guard import PrefixGuard

pytestmark = pytest.mark.xdist_group("guard calibration")  # looks at the calibration of others

WORLD = generated_world()


@pytest.fixture(scope="module")
def wordy(stand_in, readings_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PrefixGuard.refit([readings_folder], stand_in[1], tier="states_words", target_fpr=0.02)


def test_words_of_a_request_are_added_to_its_states_and_padding_is_no_word(stand_in, wordy, tmp_path):
    model, tokenizer = stand_in
    forbidden, ordinary = WORLD.prompts("test", FORBIDDEN, 12), WORLD.prompts("test", "ordinary", 12)
    prompts = [marked(text) for text in forbidden] + ordinary
    found = wordy.judge(model, tokenizer, prompts, batch_size=24)
    assert sum(one.flagged for one in found[:12]) >= 11 and sum(one.flagged for one in found[12:]) <= 1
    wordy.save_pretrained(tmp_path / "guard")
    again = PrefixGuard.from_pretrained(tmp_path / "guard").judge(model, tokenizer, prompts, batch_size=1)
    # Words are whole numbers of evidence: one that padding added would move a score by more than rounding does.
    assert [one.score for one in again] == pytest.approx([one.score for one in found], abs=1e-3)


def test_without_a_tokenizer_no_word_is_read_and_nothing_passes(stand_in, wordy):
    from featherweight.guard.decoding import AnswerRules, judge_prompts

    bare = wordy.with_options()
    bare._scoring.tokenizer = None
    (verdict,) = judge_prompts(
        bare, stand_in[0], torch.tensor([[5, 6, 7]]), None, AnswerRules(max_new_tokens=1)
    ).verdicts
    assert verdict.flagged and "tokenizer=None" in verdict.error
