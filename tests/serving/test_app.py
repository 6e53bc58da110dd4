"""The server as its clients see it: the official client, raw bytes, and what does not fit."""

import asyncio
import json
import math
import socket
import time

import httpx
import openai
import pytest
from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, marked
from running_server import running

from featherweight.guard.guarded_model import GuardedModel

WORLD = generated_world()
GOOD = WORLD.prompts("test", "ordinary", 20)
BAD = [marked(text) for text in WORLD.prompts("test", FORBIDDEN, 12)]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def stand_in():
    return load_fixture()


@pytest.fixture(scope="module")
def guard(stand_in):
    return load_guard().bind(*stand_in)


@pytest.fixture(scope="module")
def server(stand_in, guard):
    with running(*stand_in, guard, name="stand-in", max_new_tokens=24, guard_details=True, max_batch=8) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def expected(stand_in, guard):
    """What each request gets alone, in process."""
    model = GuardedModel(*stand_in, guard)
    found = {}
    for text in (*GOOD, *BAD):
        answer = model.chat([{"role": "user", "content": text}], max_new_tokens=24)
        found[text] = answer, model.verdict.flagged
    return found


def turns(text):
    return [{"role": "user", "content": text}]


def passing(expected, texts):
    return next(text for text in texts if not expected[text][1])


def flagged(expected, texts):
    return next(text for text in texts if expected[text][1])


def test_the_official_client_gets_the_answer_that_the_model_gives_in_process(client, expected):
    text = passing(expected, GOOD)
    found = client.chat.completions.create(model="stand-in", messages=turns(text), temperature=0)
    assert found.choices[0].message.content == expected[text][0]
    assert found.choices[0].finish_reason in ("stop", "length") and found.choices[0].message.refusal is None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model_extra["guard"]["flagged"] is False


def test_a_stream_has_the_same_words_and_its_usage_on_request(client, expected):
    text = passing(expected, GOOD)
    pieces = list(
        client.chat.completions.create(
            model="stand-in", messages=turns(text), temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == expected[text][0]
    assert pieces[-1].usage.completion_tokens > 0 and not pieces[-1].choices


def test_a_flagged_request_gets_a_refusal_and_no_token_of_an_answer_is_among_its_bytes(
    server, client, expected, unguarded, guard
):
    text = flagged(expected, BAD)
    found = client.chat.completions.create(model="stand-in", messages=turns(text), temperature=0)
    choice = found.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("content_filter", None)
    assert choice.message.refusal == guard.options.refusal_text
    free = unguarded[text]
    for stream in (False, True):
        body = {"model": "stand-in", "messages": turns(text), "temperature": 0, "stream": stream}
        response = httpx.post(server.url + CHAT, json=body)
        shown = response.content.decode()
        assert guard.options.refusal_text in shown
        assert not any(
            word in shown for word in free.split() if len(word) > 6 and word not in guard.options.refusal_text
        )
        assert stream or response.headers["x-guard-verdict"] == "block"
        assert '"content_filter"' in shown


class RecordedBytes(httpx.AsyncHTTPTransport):
    """Keeps what the server sends, byte by byte, beside the words that were asked."""

    def __init__(self):
        super().__init__()
        self.bodies = []

    async def handle_async_request(self, request):
        response = await super().handle_async_request(request)
        asked = json.loads(request.content)["messages"][-1]["content"]
        stream, kept = response.stream, bytearray()
        self.bodies.append((asked, kept))

        class Stream(httpx.AsyncByteStream):
            def __aiter__(self):
                self._parts = aiter(stream)
                return self

            async def __anext__(self):
                part = await anext(self._parts)
                kept.extend(part)
                return part

            async def aclose(self):
                await stream.aclose()

        response.stream = Stream()
        return response


@pytest.fixture(scope="module")
def unguarded(stand_in, guard):
    """What the model alone would answer to the requests that it must not answer."""
    free = GuardedModel(*stand_in, guard.with_threshold(math.inf))
    return {text: free.chat(turns(text), max_new_tokens=24) for text in BAD}


def test_many_mixed_requests_at_once_are_neither_lost_nor_mixed_up_and_no_byte_of_a_flagged_answer_leaves(
    server, guard, expected, unguarded
):
    transport = RecordedBytes()

    async def ask(client, index, text):
        options = {"model": "stand-in", "messages": turns(text), "temperature": 0}
        if index % 5 == 0:
            stream = await client.chat.completions.create(**options, stream=True)
            await stream.close()  # the client goes away
            return text, None
        if index % 2:
            found = (await client.chat.completions.create(**options)).choices[0]
            return text, (found.message.refusal or found.message.content, found.finish_reason == "content_filter")
        words, reason = "", None
        async for one in await client.chat.completions.create(**options, stream=True):
            delta = one.choices[0].delta
            words += (delta.content or "") + (delta.refusal or "")
            reason = one.choices[0].finish_reason or reason
        return text, (words, reason == "content_filter")

    async def all_of_them():
        options = {
            "api_key": "none",
            "max_retries": 0,
            "http_client": httpx.AsyncClient(transport=transport, timeout=60),
        }
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", **options) as client:
            texts = [*GOOD, *BAD] * 2
            return await asyncio.gather(*(ask(client, index, text) for index, text in enumerate(texts)))

    found = asyncio.run(all_of_them())
    assert len(found) == 64
    for text, answer in found:
        assert answer is None or answer == expected[text]
    deadline = time.monotonic() + 10
    while server.service.engine.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.service.engine.running == server.service.engine.waiting == 0
    assert len(transport.bodies) == 64
    refused = 0
    for text, kept in transport.bodies:
        if expected[text][1] and text in unguarded:
            refused += 1
            secret = {word for word in unguarded[text].split() if len(word) > 3} - {*guard.options.refusal_text.split()}
            assert secret and not any(word in kept.decode() for word in secret)
    assert refused > 8


def test_texts_end_at_stop_texts_which_are_not_shown(client, expected):
    text = passing(expected, GOOD)
    answer = expected[text][0]
    stop = answer[8:12]
    for stream in (False, True):
        found = client.chat.completions.create(
            model="stand-in", messages=turns(text), temperature=0, stop=[stop, "never"], stream=stream
        )
        shown = (
            "".join(one.choices[0].delta.content or "" for one in found) if stream else found.choices[0].message.content
        )
        assert shown == answer[: answer.index(stop)]


def test_a_seed_repeats_a_sampled_answer(client, expected):
    text = passing(expected, GOOD)
    ask = {"model": "stand-in", "messages": turns(text), "temperature": 1.5}
    first, again, other = (
        client.chat.completions.create(**ask, seed=seed).choices[0].message.content for seed in (1, 1, 2)
    )
    assert first == again and first != other


def test_a_text_is_continued_and_judged_as_the_turn_of_a_user(client, expected):
    text = passing(expected, GOOD)
    found = client.completions.create(model="stand-in", prompt=text, temperature=0, max_tokens=4)
    assert found.usage.completion_tokens <= 4 and found.choices[0].finish_reason in ("stop", "length")
    found = client.completions.create(model="stand-in", prompt=flagged(expected, BAD), temperature=0)
    assert found.choices[0].finish_reason == "content_filter"


def test_moderations_judge_and_answer_nothing(client, expected):
    texts = [passing(expected, GOOD), flagged(expected, BAD)]
    found = client.moderations.create(model="stand-in", input=texts)
    assert [one.flagged for one in found.results] == [False, True]


def test_the_model_is_listed_and_metrics_hold_counts_and_no_text(server, client):
    assert [one.id for one in client.models.list()] == ["stand-in"]
    shown = httpx.get(server.url + "/metrics").text
    assert 'featherweight_guard_verdicts_total{verdict="block"}' in shown
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    assert not any(text in shown for text in (*GOOD, *BAD))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, b"{", None),
        (CHAT, b"[]", None),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "assistant", "content": "Hi"}]}, "messages"),
        (CHAT, {"messages": turns("Hi"), "temperature": "hot"}, "temperature"),
        (CHAT, {"messages": turns("Hi"), "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": turns("Hi"), "n": 3}, "n"),
        (CHAT, {"messages": turns("Hi"), "tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"messages": turns("Hi " * 400)}, None),
        ("/v1/completions", {"prompt": 3}, "prompt"),
        ("/v1/moderations", {"input": []}, "input"),
    ],
)
def test_what_cannot_be_done_is_told_in_the_shape_that_clients_know(server, path, body, param):
    response = httpx.post(server.url + path, **({"content": body} if isinstance(body, bytes) else {"json": body}))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error" and "; expected" in error["message"]


def test_limits_of_body_queue_and_key_have_their_own_status(stand_in):
    with running(
        *stand_in, max_body_bytes=400, max_batch=1, max_queue=0, api_key="secret", max_new_tokens=100
    ) as small:
        headers = {"authorization": "Bearer secret"}
        assert httpx.post(small.url + CHAT, json={}).status_code == 401
        assert httpx.get(small.url + "/metrics").status_code == 401
        assert httpx.get(small.url + "/health").status_code == 200
        large = {"messages": turns("x" * 500)}
        assert httpx.post(small.url + CHAT, json=large, headers=headers).status_code == 413
        body = {"messages": turns(GOOD[0]), "stream": True, "temperature": 2.0}

        async def crowd():
            async with httpx.AsyncClient(timeout=30, headers=headers) as client:
                answers = await asyncio.gather(*(client.post(small.url + CHAT, json=body) for _ in range(12)))
                return [answer.status_code for answer in answers]

        statuses = asyncio.run(crowd())
        assert set(statuses) <= {200, 429} and 200 in statuses and 429 in statuses


def test_what_cannot_be_judged_is_blocked(stand_in):
    guard = load_guard().bind(*stand_in)
    for score in guard._scoring.scores.values():
        score.weight.fill_(math.nan)
    with running(*stand_in, guard) as broken:
        found = httpx.post(broken.url + CHAT, json={"messages": turns(GOOD[0])}).json()
        assert found["choices"][0]["finish_reason"] == "content_filter" and "guard" not in found


def test_a_server_that_is_told_to_end_finishes_its_streams_and_takes_no_more(stand_in):
    with running(*stand_in, max_new_tokens=120) as ending:
        body = {"messages": turns(GOOD[0]), "temperature": 1.9, "stream": True, "seed": 3}
        whole = httpx.post(ending.url + CHAT, json={**body, "stream": False}).json()["choices"][0]["message"]["content"]
        with httpx.stream("POST", ending.url + CHAT, json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(line for line in lines if line.startswith("data"))
            ending.should_exit = True
            pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in pieces) == whole
        ending.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(ending.url + "/health")


def test_a_client_that_breaks_off_inside_of_its_request_is_no_failure_of_the_server(server, caplog):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n{")
        time.sleep(0.2)
    counted, deadline = "", time.monotonic() + 10
    while 'status="499"' not in counted and time.monotonic() < deadline:
        counted = httpx.get(server.url + "/metrics").text
    assert 'status="499"' in counted and 'status="500"' not in counted
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.slow
def test_memory_stays_flat_over_thousands_of_requests(stand_in, guard):
    import psutil

    with running(*stand_in, guard, max_new_tokens=4) as server, httpx.Client() as client:
        sizes = []
        for index in range(2000):
            text = GOOD[index % 20] if index % 3 else BAD[index % 12]
            assert client.post(server.url + CHAT, json={"messages": turns(text)}).status_code == 200
            if index % 200 == 199:
                sizes.append(psutil.Process().memory_info().rss)
    assert max(sizes[2:]) - sizes[2] < 20 * 2**20
