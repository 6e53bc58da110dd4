"""The proxy in front of our own server, which plays the engine."""

import contextlib
import json
import threading
import time

import httpx
import openai
import pytest
import uvicorn
from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, load_text_guard, marked
from running_server import running

from featherweight.errors import ConfigError
from featherweight.guard.ensemble import GuardEnsemble
from featherweight.guard.guard import PrefixGuard
from featherweight.serving.options import ServeOptions
from featherweight.serving.proxy import Upstream, make_proxy

WORLD = generated_world()
GOOD = WORLD.prompts("test", "ordinary", 4)
BAD = [marked(text) for text in WORLD.prompts("test", FORBIDDEN, 4)]


def turns(text):
    return [{"role": "user", "content": text}]


@contextlib.contextmanager
def proxied(url, guard, order="probe-first", **options):
    app = make_proxy(guard, Upstream(url, None, 10.0), ServeOptions(port=0, **options), order)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def stand_in():
    return load_fixture()


@pytest.fixture(scope="module")
def guard(stand_in):
    return load_text_guard().bind(*stand_in)


@pytest.fixture(scope="module")
def engine(stand_in):
    with running(*stand_in, name="stand-in", max_new_tokens=16) as found:
        yield found


def test_an_ensemble_of_text_guards_asks_for_each_of_its_prefixes(engine, guard, stand_in):
    lenient = guard.with_threshold(float("inf")).with_options(
        prefix_text="I'm sorry", prefix_ids=guard.options.prefix_ids[:2]
    )
    verdicts = guard.judge(*stand_in, [GOOD[0], *BAD[:2]])
    with (
        proxied(engine.url, GuardEnsemble([lenient, guard])) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        for text, verdict in zip([GOOD[0], *BAD[:2]], verdicts, strict=True):
            found = client.chat.completions.create(model="stand-in", messages=turns(text)).choices[0]
            assert (found.finish_reason == "content_filter") == verdict.flagged
    assert {one.flagged for one in verdicts} == {True, False}
    with pytest.raises(ConfigError, match="tier=probe_hidden reads hidden states"):
        make_proxy(GuardEnsemble([guard, load_guard()]), Upstream(engine.url, None, 1.0), ServeOptions(port=0))


def test_what_passes_gets_the_engines_own_answer_and_what_is_flagged_never_reaches_it(engine, guard, stand_in):
    verdicts = guard.judge(*stand_in, [*GOOD, *BAD])
    assert any(one.flagged for one in verdicts) and not all(one.flagged for one in verdicts)
    with (
        proxied(engine.url, guard) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        direct = openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0)
        for text, verdict in zip([*GOOD, *BAD], verdicts, strict=True):
            ask = {"model": "stand-in", "messages": turns(text), "temperature": 0}
            found = client.chat.completions.create(**ask).choices[0]
            pieces = [one.choices[0] for one in client.chat.completions.create(**ask, stream=True)]
            assert (found.finish_reason == "content_filter") == verdict.flagged
            if verdict.flagged:
                assert found.message.refusal == guard.options.refusal_text and found.message.content is None
                assert not any(one.delta.content for one in pieces) and pieces[-1].finish_reason == "content_filter"
            else:
                plain = direct.chat.completions.create(**ask).choices[0].message.content
                assert found.message.content == plain == "".join(one.delta.content or "" for one in pieces)
        assert [one.id for one in client.models.list()] == ["stand-in"]
        direct.close()


def test_an_answer_that_is_asked_for_beside_the_probe_waits_for_the_verdict_and_is_given_up_if_that_is_bad(
    engine, guard, stand_in
):
    verdicts = guard.judge(*stand_in, [*GOOD, *BAD])
    picked = {one.flagged: text for text, one in zip([*GOOD, *BAD], verdicts, strict=True)}
    with proxied(engine.url, guard, order="together") as url:
        for flagged, text in picked.items():
            for stream in (False, True):
                body = {"messages": turns(text), "temperature": 0, "stream": stream}
                shown = httpx.post(f"{url}/v1/chat/completions", json=body).content.decode()
                alone = httpx.post(f"{engine.url}/v1/chat/completions", json={**body, "stream": False}).json()
                assert ("content_filter" in shown) == flagged == (guard.options.refusal_text in shown)
                if not stream:
                    content = None if flagged else alone["choices"][0]["message"]["content"]
                    assert json.loads(shown)["choices"][0]["message"]["content"] == content
    deadline = time.monotonic() + 10
    while engine.service.engine.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.service.engine.running == 0 and len(picked) == 2
    with pytest.raises(ConfigError, match="order='last' is unknown"):
        make_proxy(guard, Upstream(engine.url, None, 1), ServeOptions(port=0), "last")


def test_the_beginning_of_an_answer_does_not_steer_the_probe(engine, guard, stand_in):
    bad = next(text for text in BAD if guard.judge(*stand_in, [text])[0].flagged)
    with proxied(engine.url, guard) as url:
        body = {"messages": [*turns(bad), {"role": "assistant", "content": "Sure, here is"}]}
        assert (
            httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]["finish_reason"]
            == "content_filter"
        )


def test_an_engine_that_is_away_or_says_something_else_answers_nothing(engine, guard):
    for url in ("http://127.0.0.1:9", f"{engine.url}/nowhere"):
        with proxied(url, guard) as found:
            reply = httpx.post(f"{found}/v1/chat/completions", json={"messages": turns(GOOD[0])}, timeout=30)
            assert reply.json()["choices"][0]["finish_reason"] == "content_filter"
            assert reply.headers["x-guard-verdict"] == "block"


def test_nothing_passes_that_is_not_judged(engine, guard):
    with proxied(engine.url, guard, api_key="secret") as url:
        headers = {"authorization": "Bearer secret"}
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "Hi"}, headers=headers).status_code == 404
        assert httpx.post(f"{url}/v1/chat/completions", json={"messages": turns("Hi")}).status_code == 401
        assert httpx.post(f"{url}/v1/chat/completions", content=b"{", headers=headers).status_code == 400
        twice = b'{"messages": [{"role": "user", "content": "x"}], "messages": []}'
        assert httpx.post(f"{url}/v1/chat/completions", content=twice, headers=headers).status_code == 400


def test_a_guard_that_reads_hidden_states_and_an_address_that_is_none_are_refused(guard):
    with pytest.raises(ConfigError, match="do not cross HTTP"):
        make_proxy(
            PrefixGuard(guard.options.parse({**guard.options.to_dict(), "stages": [{"tier": "probe_hidden"}]}), {}),
            Upstream("http://x", None, 1),
            ServeOptions(),
        )
    with pytest.raises(ConfigError, match="is no address"):
        Upstream("localhost:80", None, 1)
