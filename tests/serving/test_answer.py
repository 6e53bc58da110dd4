"""Answers on their way to the client: stop texts, and over HTTP what a monitor stops and a refusal that goes on."""

import json
import math
from types import SimpleNamespace

import httpx
import pytest
import torch
from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, marked
from running_server import running

from featherweight.guard.ensemble import GuardEnsemble
from featherweight.guard.guarded_model import GuardedModel
from featherweight.guard.linear import Linear
from featherweight.guard.monitor import NAME
from featherweight.serving.answer import Answer

WORLD = generated_world()
GOOD, BAD = WORLD.prompts("test", "ordinary", 12), [marked(text) for text in WORLD.prompts("test", FORBIDDEN, 6)]
STOPPED_AFTER, HELD = 4, 2


def cut(stops, pieces):
    answer = Answer(SimpleNamespace(writer=lambda: None), SimpleNamespace(stops=stops), None)
    shown = ""
    for index, piece in enumerate(pieces):
        more, is_over = answer._cut(piece, is_last=index == len(pieces) - 1)
        shown += more
        if is_over:
            break
    return shown


def test_a_stop_text_is_found_across_pieces_and_its_beginning_is_held_back_only_as_long_as_it_may_be_one():
    assert cut(("END",), ["ab", "cE", "N", "D more"]) == "abc"
    assert cut(("END",), ["abE", "Nx", "yE"]) == "abENxyE"
    assert cut(("b", "abc"), ["xa", "bc"]) == "x"
    assert cut((), ["a", "b"]) == "ab"


@pytest.fixture(scope="module")
def stand_in():
    return load_fixture()


@pytest.fixture(scope="module")
def guard(stand_in):
    return load_guard().bind(*stand_in)


def watched(guard, **options):
    """A guard whose monitor gives every token a score of 1: its level 1 - 0.5 ** t passes 0.9 with the fourth."""
    monitor = {"decay": 0.5, "hold_back": HELD, "stop_above": 0.9, **options.pop("monitor", {})}
    found = guard.with_options(monitor=monitor, **options)
    width = guard.linear("probe_hidden").weight.shape[0]
    always = Linear(torch.zeros(width), torch.ones(width), torch.zeros(width), torch.ones(()))
    found._scoring.scores = {**guard._scoring.scores, NAME: always}
    return found


def asked(server, text, *, stream):
    """What a client gets: the words, the refusal, why it ended, and all bytes."""
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "stream": stream}
    shown = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=30).content.decode()
    if not stream:
        choice = json.loads(shown)["choices"][0]
        return choice["message"]["content"] or "", choice["message"]["refusal"], choice["finish_reason"], shown
    choices = [json.loads(line[6:])["choices"][0] for line in shown.splitlines() if line.startswith("data: {")]
    words = "".join(one["delta"].get("content") or "" for one in choices)
    refusal = "".join(one["delta"].get("refusal") or "" for one in choices)
    return words, refusal or None, choices[-1]["finish_reason"], shown


def secrets_of(text, known):
    """Words that must not stand among the bytes."""
    return {word for word in text.split() if len(word) > 3} - {*known.split(), "assistant"}


@pytest.fixture(scope="module")
def free(stand_in, guard):
    """What the model answers when nothing is refused."""
    model = GuardedModel(*stand_in, guard.with_threshold(math.inf))
    return {text: model.chat([{"role": "user", "content": text}], max_new_tokens=24) for text in (*GOOD, *BAD)}


@pytest.mark.parametrize("stream", [False, True])
def test_no_byte_of_what_a_monitor_holds_back_leaves_when_it_stops_an_answer(stand_in, guard, free, stream):
    tokenizer = stand_in[1]
    guard = watched(guard)
    passing = [text for text in GOOD if not guard.judge(*stand_in, [text])[0].flagged][:3]
    with running(*stand_in, guard, max_new_tokens=24) as server:
        for text in passing:
            ids = tokenizer(free[text], add_special_tokens=False)["input_ids"]
            first = tokenizer.decode(ids[: STOPPED_AFTER - HELD])
            words, refusal, reason, shown = asked(server, text, stream=stream)
            assert reason == "content_filter" and refusal == guard.options.refusal_text
            assert first.startswith(words) and secrets_of(free[text], first + refusal)
            assert not any(word in shown for word in secrets_of(free[text], first + refusal))
    assert len(passing) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_flagged_request_gets_the_refusal_that_the_model_goes_on_with_and_no_byte_of_its_answer(
    stand_in, guard, free, stream
):
    settings = {"on_flag": "continue", "monitor": {"stop_above": None}}
    goes_on = watched(guard, **settings)
    stopped = watched(guard, on_flag="continue", monitor={"stop_above": 0.4})  # at the first token
    flagged = [text for text in BAD if guard.judge(*stand_in, [text])[0].flagged][:2]
    alone = GuardedModel(*stand_in, goes_on)
    for one in (goes_on, stopped):
        with running(*stand_in, one, max_new_tokens=24) as server:
            for text in flagged:
                words, refusal, reason, shown = asked(server, text, stream=stream)
                expected = alone.chat([{"role": "user", "content": text}], max_new_tokens=24)
                expected = expected if one is goes_on else guard.options.refusal_text
                assert (words, refusal, reason) == ("", expected, "content_filter")
                assert one is stopped or refusal.startswith(guard.options.prefix_text)
                assert secrets_of(free[text], refusal)
                assert not any(f'"{word}' in shown for word in secrets_of(free[text], refusal))
                if one is stopped:  # nor of the refusal that the monitor did not like
                    own = alone.chat([{"role": "user", "content": text}], max_new_tokens=24)
                    assert not any(word in shown for word in secrets_of(own, refusal))
    assert len(flagged) == 2


def test_an_ensemble_behind_the_server_refuses_what_one_of_its_guards_flags(stand_in, guard, free):
    silent = guard.with_threshold(math.inf)
    texts = [*GOOD[:2], *BAD[:2]]
    expected = [one.flagged for one in guard.judge(*stand_in, texts)]
    for members, flags in (((silent, guard), expected), ((silent, silent), [False] * 4)):
        with running(*stand_in, GuardEnsemble(members), max_new_tokens=24, guard_details=True) as server:
            for text, flagged in zip(texts, flags, strict=True):
                words, refusal, reason, _ = asked(server, text, stream=False)
                assert (reason == "content_filter") == flagged
                assert (words, refusal) == (("", guard.options.refusal_text) if flagged else (free[text], None))
    assert any(expected) and not all(expected)
