import math

import torch
from guard_models import random_guard

from featherweight.guard.linear import Linear
from featherweight.guard.options import GuardOptions
from featherweight.guard.probe import Probe

VOCABULARY = 8


class Scripted:
    """A judge whose scores are the number of probe tokens so far, and the prefix's first hidden value."""

    def __init__(self, **options):
        self.options = GuardOptions(prefix_text="a b", prefix_ids=[1, 2], layers=[0], **options)

    def score(self, tier, evidence):
        if tier == "probe":
            return torch.tensor([float(len(ids)) for ids in evidence.probe_ids])
        return evidence.prefix_hidden[:, 0] if tier == "prefix_hidden" else evidence.prompt_hidden[:, 0]

    def probe_text(self, probe_ids):
        return " ".join(map(str, probe_ids))


def logits(*tokens):
    return torch.nn.functional.one_hot(torch.tensor(tokens), VOCABULARY).float()


def states(*values):
    return (torch.tensor(values, dtype=torch.float32)[:, None],)


def begun(judge, rows, *, prompt=0.0, prefix=0.0, first=3):
    probe = Probe(judge, rows, stop_token_ids=[7])
    probe.read_prompt(logits(*[1] * rows), states(*[prompt] * rows))
    if not probe.is_decided:
        probe.read_prefix(logits(*[first] * rows)[:, None].expand(-1, 2, -1), states(*[prefix] * rows))
    return probe


def test_a_look_at_the_prompt_may_flag_before_anything_is_forced():
    judge = Scripted(stages=[{"tier": "hidden", "flag_above": 1.0}, {"tier": "prefix_hidden", "flag_above": 1.0}])
    probe = begun(judge, 1, prompt=2.0)
    assert probe.is_decided and probe.verdicts[0].tier == "hidden" and probe.next_tokens() is None
    assert not begun(judge, 1, prompt=-9.0, prefix=2.0).verdicts[0].tier == "hidden"


def test_a_cascade_asks_the_probe_only_where_the_first_look_is_unsure():
    judge = Scripted(
        stages=[
            {"tier": "prefix_hidden", "flag_above": 2.0, "clear_at_most": -2.0},
            {"tier": "probe", "flag_above": 0.5},
        ],
        probe_tokens=2,
    )
    for value, flagged, tier in ((3.0, True, "prefix_hidden"), (-3.0, False, "prefix_hidden"), (0.0, True, "probe")):
        probe = begun(judge, 1, prefix=value)
        assert probe.is_decided == (tier != "probe")
        while (tokens := probe.next_tokens()) is not None:
            probe.read_token(logits(*tokens.tolist()), None)
        assert (probe.verdicts[0].flagged, probe.verdicts[0].tier) == (flagged, tier)


def test_an_early_exit_lets_go_and_the_last_token_is_not_read():
    judge = Scripted(
        stages=[{"tier": "probe", "flag_above": 9.0}], probe_tokens=6, early_exit=[{"tokens": 3, "clear_at_most": 4.0}]
    )
    probe, read = begun(judge, 2), 0
    while (tokens := probe.next_tokens()) is not None:
        probe.read_token(logits(*tokens.tolist()), None)
        read += 1
    assert [one.probe_tokens for one in probe.verdicts] == [3, 3] and read == 2
    full = begun(Scripted(stages=[{"tier": "probe", "flag_above": 5.5}], probe_tokens=6), 1)
    while (tokens := full.next_tokens()) is not None:
        full.read_token(logits(*tokens.tolist()), None)
    assert full.written == 6 and full.verdicts[0].flagged and full.verdicts[0].probe_text == "3 3 3 3 3 3"


def test_a_reply_that_ends_is_decided_there_and_others_go_on():
    judge = Scripted(stages=[{"tier": "probe", "flag_above": 2.5}], probe_tokens=4)
    probe = begun(judge, 2)
    assert probe.next_tokens().tolist() == [3, 3]
    probe.read_token(logits(7, 3), None)
    assert probe.next_tokens().tolist() == [7, 3]
    probe.read_token(logits(5, 3), None)
    while probe.next_tokens() is not None:
        probe.read_token(logits(5, 3), None)
    assert [(one.flagged, one.probe_tokens) for one in probe.verdicts] == [(False, 1), (True, 4)]


def test_scores_that_are_no_numbers_and_errors_of_a_judge_block():
    judge = Scripted(stages=[{"tier": "prefix_hidden", "flag_above": 1.0}])
    verdict = begun(judge, 1, prefix=math.nan).verdicts[0]
    assert verdict.flagged and "finite" in verdict.error
    judge.score = lambda tier, evidence: 1 / 0
    verdict = begun(judge, 1).verdicts[0]
    assert verdict.flagged and verdict.error.startswith("ZeroDivisionError") and math.isnan(verdict.score)


def test_hidden_states_are_the_mean_over_the_tokens_that_were_read():
    guard = random_guard("llama", probe_tokens=3)
    probe = Probe(guard, 1, [], decides=False)
    width = 32
    flat = tuple(torch.full((1, width), value) for value in (0.0, 1.0, 2.0, 3.0, 4.0))
    probe.read_prompt(torch.zeros(1, 64), flat)
    probe.read_prefix(torch.zeros(1, 4, 64), flat)
    assert torch.equal(probe.evidence.probe_hidden, probe.evidence.prefix_hidden)
    for size in (10.0, 20.0):
        assert probe.next_tokens() is not None
        probe.read_token(torch.zeros(1, 64), tuple(torch.full((1, width), size) for _ in range(5)))
    assert float(probe.evidence.probe_hidden.mean()) == 15.0
    assert isinstance(guard._scoring.scores["probe_hidden"], Linear)
