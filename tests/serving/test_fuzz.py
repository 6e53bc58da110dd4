"""Every endpoint under any request: never a failure of the server's own."""

import httpx
import pytest
from guard_stand_in import load_fixture, load_guard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_requests import NAMES, VALUES
from running_server import running

TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", "tool", "x"]), "content": VALUES}),
    max_size=3,
)
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5) | st.builds(
    lambda body, turns: {**body, "messages": turns},
    st.dictionaries(st.sampled_from([name for name in NAMES if name != "messages"]), VALUES, max_size=4),
    TURNS,
)
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/moderations", "/v1/models", "/metrics", "/health", "/", "/v1"]


@pytest.mark.slow
def test_no_request_makes_the_server_fail():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    with running(model, tokenizer, guard, max_new_tokens=3, page=True) as server, httpx.Client(timeout=60) as client:

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            st.sampled_from(PATHS),
            st.sampled_from(["POST", "GET", "PUT", "OPTIONS"]),
            BODIES | st.binary(max_size=60) | VALUES,
            st.dictionaries(
                st.sampled_from(["authorization", "content-type", "accept", "range", "x-odd"]),
                st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12),
                max_size=2,
            ),
        )
        def ask(path, method, body, headers):
            content = {"content": body} if isinstance(body, bytes) else {"json": body}
            try:
                response = client.request(method, server.url + path, headers=headers, **content)
            except ValueError:  # JSON itself has no word for this value
                return
            assert response.status_code < 500, (path, method, body, response.text)

        ask()
        assert server.service.engine.is_alive
        good = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        assert client.post(server.url + PATHS[0], json=good).status_code == 200
