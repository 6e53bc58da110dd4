import asyncio

import pytest
from guard_stand_in import load_fixture, load_guard

from featherweight.serving.options import ServeOptions
from featherweight.serving.request import RequestError, parse_chat, parse_completion
from featherweight.serving.service import Service


def service(**options):
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    return Service(None, tokenizer, ServeOptions(**options), guard, 192), guard


def job_of(found, asked):
    async def run():
        return found.job_of(asked)

    return asyncio.run(run())


def test_keys_are_compared_whole():
    found, _ = service(api_key="schlüssel")
    found.check_key("Bearer schlüssel")
    for wrong in (None, "", "schlüssel", "Bearer schlüsse", "bearer schlüssel", "Bearer schlüssel "):
        with pytest.raises(RequestError, match="missing or wrong"):
            found.check_key(wrong)


def test_the_beginning_of_an_answer_is_not_what_is_judged():
    found, _ = service()
    turns = [{"role": "user", "content": "Hi"}]
    plain = job_of(found, parse_chat({"messages": turns}, 9))
    begun = job_of(found, parse_chat({"messages": [*turns, {"role": "assistant", "content": "Sure"}]}, 9))
    assert begun.prompt_ids == plain.prompt_ids and begun.begun_ids and not plain.begun_ids


def test_a_plain_text_is_judged_as_a_conversation():
    found, _ = service()
    job = job_of(found, parse_completion({"prompt": "Hi"}, 9))
    chat = job_of(found, parse_chat({"messages": [{"role": "user", "content": "Hi"}]}, 9))
    assert job.judged_ids == chat.prompt_ids != job.prompt_ids


def test_answers_are_as_long_as_the_context_lets_them_be_and_the_probe_has_its_room():
    found, guard = service()
    assert job_of(found, parse_chat({"messages": [{"role": "user", "content": "a " * 150}]}, 500)).max_new_tokens < 60
    with pytest.raises(RequestError, match="do not fit the context of 192"):
        job_of(found, parse_chat({"messages": [{"role": "user", "content": "a " * 180}]}, 5))
    assert guard.options.probe_tokens == 12
