"""The guardrail for LiteLLM, in front of our own server as the engine."""

import asyncio
import importlib.util

import pytest
from guard_stand_in import FIXTURE, FORBIDDEN, generated_world, load_fixture, load_guard, load_text_guard, marked
from running_server import running

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.serving.litellm_guardrail import Flagged, TextGuardrail
from featherweight.serving.proxy import Upstream

WORLD = generated_world()


def asked(text):
    return {"model": "stand-in", "messages": [{"role": "user", "content": text}]}


def test_what_is_flagged_or_cannot_be_judged_raises_its_refusal_and_the_rest_passes():
    model, tokenizer = load_fixture()
    guard = load_text_guard().bind(model, tokenizer)
    texts = [*WORLD.prompts("test", "ordinary", 3), *map(marked, WORLD.prompts("test", FORBIDDEN, 3))]
    verdicts = guard.judge(model, tokenizer, texts)
    assert {one.flagged for one in verdicts} == {False, True}

    async def check_all(url):
        upstream = Upstream(url, None, 10.0)
        rail = TextGuardrail(guard, upstream)
        for text, verdict in zip(texts, verdicts, strict=True):
            if verdict.flagged:
                with pytest.raises(Flagged, match="I cannot help with that"):
                    await rail.check(asked(text))
            else:
                assert not (await rail.check(asked(text))).flagged
        for broken in ({}, {"messages": "hello"}):
            with pytest.raises(Flagged):
                await rail.check(broken)
        nowhere = Upstream("http://127.0.0.1:9", None, 2.0)
        with pytest.raises(Flagged):
            await TextGuardrail(guard, nowhere).check(asked(texts[0]))
        for one in (upstream, nowhere):
            await one.client.aclose()

    with running(model, tokenizer, name="stand-in", max_new_tokens=16) as engine:
        asyncio.run(check_all(engine.url))


def test_a_guard_of_hidden_states_is_refused():
    with pytest.raises(ConfigError, match="guardrail: tier=probe_hidden reads hidden states"):
        TextGuardrail(load_guard(), Upstream("http://x", None, 1.0))


def test_the_class_that_litellm_names_judges_before_a_request_is_passed_on_and_needs_the_package():
    from featherweight.serving import litellm_guardrail as home

    if importlib.util.find_spec("litellm") is None:
        with pytest.raises(MissingExtraError, match="litellm is not installed"):
            _ = home.PrefixGuardrail
    else:
        rail = home.PrefixGuardrail(
            guard=str(FIXTURE.with_name("stand_in_text_guard")), upstream="http://127.0.0.1:9", guardrail_name="policy"
        )
        with pytest.raises(Flagged):
            asyncio.run(rail.async_pre_call_hook(None, None, asked("hello"), "completion"))
    with pytest.raises(AttributeError):
        _ = home.Other
