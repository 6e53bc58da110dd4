import pytest
import torch
from guard_models import random_guard
from guard_stand_in import load_fixture, load_guard

from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.evidence import Evidence
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.verdict import Verdict


def test_the_truncated_refusal_ends_with_its_last_whole_sentence():
    guard = random_guard("llama", on_flag="truncate")
    verdict = Verdict(True, 1.0, "probe", 5, " w1 w2. w3 w4")
    assert guard.refusal(verdict) == "w0 w4 w9 w15 w1 w2."
    assert guard.refusal(Verdict(True, 1.0, "probe", 5, " w1 w2")) == "w7 w8"


def test_a_changed_copy_leaves_the_guard_as_it_was_and_stays_bound():
    guard = load_guard().bind(*load_fixture())
    other = guard.with_options(refusal_text="No.")
    assert guard.options.refusal_text != "No." == other.refusal(Verdict(True, 1.0, "probe", 0))
    assert other.refusal_ids(Verdict(True, 1.0, "probe", 0)) and other.tiers == guard.tiers == ("probe_hidden",)
    with pytest.raises(ConfigError, match="refusal_txt"):
        guard.with_options(refusal_txt="No.")


def test_an_unbound_guard_says_what_it_lacks():
    with pytest.raises(ConfigError, match="tokenizer=None"):
        load_guard().refusal_ids(Verdict(True, 1.0, "probe", 0))
    words = PrefixGuard(
        load_guard().options.parse({**load_guard().options.to_dict(), "stages": [{"tier": "probe"}]}), {}
    )
    with pytest.raises(ConfigError, match="the tier probe reads text"):
        words.probe_text([1])
    with pytest.raises(CheckpointError, match="tier=probe has no score"):
        words.score("probe", Evidence(probe_hidden=torch.zeros(1, 1)))
