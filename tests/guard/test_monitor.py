"""The monitor of answers: what it stops, what it holds back, and that it changes nothing else."""

import math

import pytest
import torch
from guard_models import random_guard, word_tokenizer
from tiny_models import prompt, tiny_model

from featherweight.errors import ConfigError
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.guarded_model import GuardedModel
from featherweight.guard.linear import Linear
from featherweight.guard.monitor import NAME, HeldBack, Monitor
from featherweight.guard.options import MonitorOptions

COUNT = 12


def monitored(limit, *, name="llama", hold_back=3, **options):
    """A guard that lets all pass and watches answers with a random score."""
    guard = random_guard(name, **options).with_threshold(math.inf)
    width = guard.linear("probe_hidden").weight.numel()
    weight = torch.randn(width, generator=torch.Generator().manual_seed(3))
    guard._scoring.scores[NAME] = Linear(torch.zeros(width), torch.ones(width), weight, torch.zeros(()))
    return guard.with_options(monitor={"hold_back": hold_back, "stop_above": limit})


def generated(guard, ids, name="llama", **options):
    model = GuardedModel(tiny_model(name), word_tokenizer(), guard)
    return model.generate(ids, max_new_tokens=COUNT, do_sample=False, pad_token_id=0, return_guard=True, **options)


def linear_of_one():
    return Linear(torch.zeros(1), torch.ones(1), torch.ones(1), torch.zeros(()))


def test_the_level_is_the_running_mean_of_the_formula_and_its_excess_stops_for_good():
    monitor = Monitor(linear_of_one(), MonitorOptions(decay=0.5, stop_above=1.0), (0,), 2)
    level = 0.0
    for value in (1.0, 2.0, 0.5, 3.0, -9.0):
        monitor.read((torch.tensor([[value], [0.0]]),))
        if monitor.stopped_at[0] is None or monitor.stopped_at[0] == 2:
            level = 0.5 * level + 0.5 * value
        if monitor.stopped_at[0] is not None:
            break
    assert level == float(monitor.level[0]) == 1.25 and monitor.stopped_at == [2, None]
    assert monitor.read((torch.tensor([[-9.0], [0.0]]),)) == [True, False]


def test_a_score_that_is_no_number_stops_the_answer():
    monitor = Monitor(linear_of_one(), MonitorOptions(stop_above=1.0), (0,), 1)
    assert monitor.read((torch.tensor([[math.nan]]),)) == [True]


@pytest.mark.parametrize("branch", ["sequential", "parallel"])
@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_a_monitor_that_stops_nothing_changes_no_token(name, branch):
    ids = prompt(3, 9)
    output = generated(monitored(1e9, name=name, branch=branch), ids, name)
    plain = tiny_model(name).generate(ids, max_new_tokens=COUNT, do_sample=False, pad_token_id=0)
    assert torch.equal(output.sequences, plain) and output.guard_stopped == [False] * 3


@pytest.mark.parametrize("branch", ["sequential", "parallel"])
def test_a_stopped_answer_ends_with_the_refusal_and_what_was_held_back_is_never_shown(branch):
    from transformers.generation.streamers import BaseStreamer

    class Recorder(BaseStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen += value.reshape(-1).tolist()

        def end(self):
            pass

    found = 0
    for seed in range(4):
        ids, recorder = prompt(1, 9, seed=seed), Recorder()
        plain = tiny_model("llama").generate(ids, max_new_tokens=COUNT, do_sample=False, pad_token_id=0)[0].tolist()
        output = generated(monitored(0.5, branch=branch), ids, streamer=recorder)
        new = output.sequences[0, 9:].tolist()
        assert recorder.seen == output.sequences[0].tolist()
        if output.guard_stopped[0]:
            found += 1
            kept = new[:-3]
            assert new[-3:] == [12, 13, 0] and kept == plain[9 : 9 + len(kept)] and len(kept) <= COUNT - 3
        else:
            assert new == plain[9:]
    assert 0 < found < 4


def test_rows_of_a_batch_are_stopped_where_they_are_stopped_alone():
    ids, guard = prompt(6, 9), monitored(0.5)
    together = generated(guard, ids)
    assert 0 < sum(together.guard_stopped) < 6
    for row in range(6):
        alone = generated(guard, ids[row : row + 1])
        assert alone.guard_stopped == [together.guard_stopped[row]]
        width = alone.sequences.shape[1]
        assert torch.equal(together.sequences[row, :width], alone.sequences[0])


def test_a_conversation_is_stopped_and_its_held_back_words_are_not_shown():
    turns = [{"role": "user", "content": "w3 w9 w1"}]
    free = GuardedModel(tiny_model("llama"), word_tokenizer(), monitored(1e9)).chat(turns, max_new_tokens=COUNT)
    shown = GuardedModel(tiny_model("llama"), word_tokenizer(), monitored(-5.0)).chat(turns, max_new_tokens=COUNT)
    assert shown.strip() == "w7 w8"
    assert len(free.split()) > 3


def test_a_refusal_goes_on_as_the_model_writes_it_only_under_a_monitor():
    with pytest.raises(ConfigError, match="continue needs a monitor"):
        random_guard("llama").with_options(on_flag="continue")
    ids = prompt(2, 9)
    for limit in (1e9, -1e9):
        guard = (
            monitored(limit).with_threshold(-math.inf).with_options(on_flag="continue", monitor={"stop_above": limit})
        )
        output = generated(guard, ids)
        for row, verdict in enumerate(output.guard):
            new = output.sequences[row, 9:].tolist()
            if limit > 0:
                begun = [*guard.options.prefix_ids, *verdict.probe_ids]
                whole = torch.tensor([[*ids[row].tolist(), *begun]])
                plain = tiny_model("llama").generate(whole, max_new_tokens=COUNT - len(begun), do_sample=False)
                assert new[: len(begun)] == begun and new == plain[0, 9:].tolist()
            else:
                assert new == [12, 13, 0]


def test_tokens_wait_in_order_and_the_rest_comes_at_the_end():
    held, shown = HeldBack(2), []
    for token in range(5):
        shown.append(held.add(token))
    assert shown == [None, None, 0, 1, 2] and held.rest() == [3, 4] and held.rest() == []


def test_a_guard_with_a_monitor_is_stored_and_read_back(tmp_path):
    guard = monitored(0.5)
    guard.save_pretrained(tmp_path / "guard")
    read = PrefixGuard.from_pretrained(tmp_path / "guard").bind(tiny_model("llama"), word_tokenizer())
    ids = prompt(3, 9)
    assert torch.equal(generated(read, ids).sequences, generated(guard, ids).sequences)
