import pytest
import torch
from guard_stand_in import load_fixture, load_guard
from tiny_models import tiny_model

from featherweight.errors import ConfigError
from featherweight.guard.decoding import AnswerRules, judge_prompts
from featherweight.guard.guarded_model import GuardedModel
from featherweight.guard.reading import collect
from featherweight.guard.room import LEAST_PROBE, probe_limit, reserved_tokens

CONTEXT = 192


@pytest.fixture
def guarded():
    model, tokenizer = load_fixture()
    return model, tokenizer, load_guard().bind(model, tokenizer)


def prompt(length, seed=0):
    return torch.randint(100, 900, (1, length), generator=torch.Generator().manual_seed(seed))


def test_a_probe_that_has_no_room_is_shorter_and_below_its_least_length_the_prompt_is_refused(guarded):
    model, tokenizer, guard = guarded
    room = CONTEXT - len(guard.options.forced_ids)
    most = room - LEAST_PROBE
    assert reserved_tokens(guard) == CONTEXT - most
    limits = [probe_limit(model, tokens, guard) for tokens in (10, room - 12, room - 11, most)]
    assert limits == [12, 12, 11, LEAST_PROBE]
    with pytest.raises(ConfigError, match=f"leave no room .* expected at most {most}"):
        probe_limit(model, most + 1, guard)
    with pytest.raises(ConfigError, match="leave no room"):
        guard.judge(model, tokenizer, ["word " * 200])
    with pytest.raises(ConfigError, match="leave no room"):
        GuardedModel(model, tokenizer, guard).generate(torch.full((1, most + 1), 7), max_new_tokens=1)


def test_a_shorter_probe_reads_to_the_end_of_the_context_and_no_further(guarded):
    model, _, guard = guarded
    guard = guard.with_options(early_exit=[])
    ids = prompt(CONTEXT - len(guard.options.forced_ids) - 10)
    longest = []
    hook = model.model.rotary_emb.register_forward_pre_hook(
        lambda module, given, named: longest.append(int(named["position_ids"].max())), with_kwargs=True
    )
    verdict = judge_prompts(guard, model, ids, None, AnswerRules(max_new_tokens=1)).verdicts[0]
    hook.remove()
    assert verdict.error is None and verdict.probe_tokens == 10
    assert max(longest) == CONTEXT - 2  # the last token of a probe is not read
    # The same score as a guard of probes of 10 tokens gives.
    short = guard.with_options(probe_tokens=10)
    assert judge_prompts(short, model, ids, None, AnswerRules(max_new_tokens=1)).verdicts[0].score == verdict.score


def test_a_shorter_probe_does_not_depend_on_its_company(guarded):
    model, _, guard = guarded
    guard = guard.with_options(early_exit=[])
    rows = [prompt(CONTEXT - len(guard.options.forced_ids) - left, left)[0] for left in (9, 40, 11)]
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    rules = AnswerRules(max_new_tokens=1)
    together = judge_prompts(guard, model, ids, mask, rules).verdicts
    assert [one.probe_tokens for one in together] == [9, 12, 11]
    for row, verdict in zip(rows, together, strict=True):
        alone = judge_prompts(guard, model, row[None], None, rules, parallel=True).verdicts[0]
        assert alone.probe_ids == verdict.probe_ids and alone.score == pytest.approx(verdict.score, abs=1e-3)


def test_a_calibration_reads_whole_probes_alone(guarded):
    model, tokenizer, guard = guarded
    room = CONTEXT - len(guard.options.forced_ids) - 12
    words = "a " * room
    with pytest.raises(ConfigError, match="no room for a whole probe in the context of 192 tokens"):
        collect([guard], model, tokenizer, [words])


def test_a_model_that_names_no_context_has_room_for_all(guarded):
    model = tiny_model("mamba2")
    assert probe_limit(model, 10**6, guarded[2]) == 12
