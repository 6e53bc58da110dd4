import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_requests import NAMES, VALUES

from featherweight.serving.request import RequestError, parse_chat, parse_completion, parse_json, parse_moderation


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
def test_any_object_is_understood_or_refused_with_a_sentence(body):
    for parse in (lambda: parse_chat(body, 64), lambda: parse_completion(body, 64), lambda: parse_moderation(body)):
        try:
            parse()
        except RequestError as error:
            assert error.status == 400 and str(error).startswith("serve: ")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_object_or_refused(body):
    try:
        assert isinstance(parse_json(body), dict)
    except RequestError as error:
        assert error.status == 400


def test_what_a_request_leaves_out_has_its_usual_meaning():
    turns = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    asked = parse_chat({"messages": turns}, 64)
    assert asked.prompt == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert (asked.max_new_tokens, asked.sampling.temperature, asked.is_stream) == (64, 1.0, False)
    assert asked.seed != parse_chat({"messages": turns}, 64).seed
    body = {"messages": turns, "temperature": 0, "max_completion_tokens": 5, "stop": "x", "seed": -1, "stream": True}
    asked = parse_chat(body, 64)
    assert (asked.max_new_tokens, asked.sampling.temperature, asked.stops, asked.is_stream) == (5, 0, ("x",), True)
    assert asked.seed == 2**63 - 1


def test_errors_have_the_kind_of_their_status():
    kinds = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}
    for status, kind in kinds.items():
        assert RequestError(status, "no").body()["error"]["type"] == kind


def test_a_body_that_nests_too_deep_is_refused():
    with pytest.raises(RequestError, match="no JSON"):
        parse_json(b"[" * 100_000)
