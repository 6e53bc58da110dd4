import pytest
from guard_stand_in import load_guard, load_text_guard

from featherweight.errors import ConfigError
from featherweight.guard.text_verdict import judge_text, require_text_guard


def test_words_alone_are_judged_as_in_the_model_and_a_guard_of_hidden_states_cannot_do_it():
    guard = load_text_guard()
    policy = judge_text(guard, " help with it, because this assistant must not handle bank accounts.", ended=True)
    cannot = judge_text(guard, " look it up, since I have no live access to it.", ended=True)
    assert policy.flagged and not cannot.flagged and policy.score > cannot.score
    require_text_guard(guard, "here")
    with pytest.raises(ConfigError, match="here: tier=probe_hidden reads hidden states"):
        require_text_guard(load_guard(), "here")
