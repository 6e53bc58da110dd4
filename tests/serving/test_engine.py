import asyncio
import threading

import pytest
from guard_models import random_guard
from tiny_models import SETTINGS, prompt, tiny_model

from featherweight.guard.decoding import AnswerRules, judge_prompts
from featherweight.guard.ensemble import GuardEnsemble
from featherweight.models.decoding_rows import join
from featherweight.models.generation import generate, prefill
from featherweight.serving.engine import Busy, Closing, Engine
from featherweight.serving.job import Ended, Job, TokenWritten, VerdictFell


async def events_of(job):
    found = []
    while not found or not isinstance(found[-1], Ended):
        found.append(await asyncio.wait_for(job.events.get(), 30))
    return found


def words(events):
    return [one.token_id for one in events if isinstance(one, TokenWritten)]


def answered(engine, jobs):
    async def run():
        made = [Job(**job) for job in jobs]
        for job in made:
            engine.submit(job)
        return await asyncio.gather(*(events_of(job) for job in made))

    return asyncio.run(run())


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3_next"])
def test_requests_of_one_batch_get_the_tokens_that_they_get_alone(name):
    model, guard = tiny_model(name), random_guard(name)
    prompts = [prompt(1, length, seed=length) for length in (3, 30, 9, 12, 5, 17, 4)]

    engine = Engine(model, stop_token_ids=[], guard=guard, max_batch=4)
    found = answered(
        engine, [{"prompt_ids": ids[0].tolist(), "max_new_tokens": 6 + ids.shape[1] % 5} for ids in prompts]
    )
    engine.close()
    flagged = 0
    for ids, events in zip(prompts, found, strict=True):
        assert isinstance(events[0], VerdictFell)
        if events[0].verdict.flagged:
            flagged += 1
            assert events[1:] == [Ended("content_filter")]
        else:
            alone = generate(prefill(model, ids), max_new_tokens=6 + ids.shape[1] % 5)[0].tolist()
            assert words(events) == alone and events[-1] == Ended("length")
    assert 0 < flagged < len(prompts)


@pytest.mark.parametrize("on_flag", ["message", "annotate"])
def test_an_answer_takes_over_the_row_of_its_probe_and_copies_no_other(monkeypatch, on_flag):
    from featherweight.serving import engine as room

    joined = []
    monkeypatch.setattr(room, "join", lambda decodings: joined.append(len(decodings)) or join(decodings))
    model, guard = tiny_model("llama"), random_guard("llama", on_flag=on_flag)
    prompts = [prompt(1, length, seed=length) for length in (3, 30, 9, 12)]
    engine = Engine(model, stop_token_ids=[], guard=guard, max_batch=4)
    found = answered(engine, [{"prompt_ids": ids[0].tolist(), "max_new_tokens": 12} for ids in prompts])
    engine.close()
    assert len(joined) <= len(prompts)  # each probe once; its answer never
    for ids, events in zip(prompts, found, strict=True):
        passes = on_flag == "annotate" or not events[0].verdict.flagged
        alone = generate(prefill(model, ids), max_new_tokens=12)[0].tolist()
        assert words(events) == (alone if passes else [])


def test_a_model_whose_windows_count_places_answers_behind_a_probe_as_without_one(monkeypatch):
    local = {"model_type": "gpt_neo", "num_layers": 2, "num_heads": 4, "window_size": 8, "intermediate_size": 48}
    monkeypatch.setitem(SETTINGS, "gpt_neo", {**local, "attention_types": [[["global", "local"], 1]]})
    model, guard = tiny_model("gpt_neo"), random_guard("gpt_neo", on_flag="annotate")
    prompts = [prompt(1, length, seed=length) for length in (3, 30, 9)]
    engine = Engine(model, stop_token_ids=[], guard=guard, max_batch=4)
    found = answered(engine, [{"prompt_ids": ids[0].tolist(), "max_new_tokens": 12} for ids in prompts])
    engine.close()
    for ids, events in zip(prompts, found, strict=True):
        assert words(events) == generate(prefill(model, ids), max_new_tokens=12)[0].tolist()


def test_a_request_that_is_cancelled_leaves_and_others_go_on():
    model = tiny_model("llama")
    engine = Engine(model, stop_token_ids=[], max_batch=4)

    async def run():
        long = Job(prompt(1, 5)[0].tolist(), max_new_tokens=200)
        other = Job(prompt(1, 7)[0].tolist(), max_new_tokens=20)
        engine.submit(long)
        engine.submit(other)
        await long.events.get()
        long.cancel()
        return await events_of(other)

    assert len(words(asyncio.run(run()))) == 20
    engine.close()
    assert engine.running == 0 and not engine.is_alive


def test_a_seed_decides_the_words_whatever_the_company():
    model = tiny_model("llama")
    from featherweight.models.sampling import Sampling

    engine = Engine(model, stop_token_ids=[], max_batch=4)
    one = {
        "prompt_ids": prompt(1, 5)[0].tolist(),
        "max_new_tokens": 8,
        "sampling": Sampling(temperature=1.0),
        "seed": 3,
    }
    alone = answered(engine, [one])[0]
    crowd = answered(engine, [{**one, "seed": seed} for seed in (1, 2, 3)])
    engine.close()
    assert words(crowd[2]) == words(alone) != words(crowd[0])


def test_a_full_queue_and_a_closing_engine_take_nothing():
    model, hold = tiny_model("llama"), threading.Event()
    hook = model.register_forward_pre_hook(lambda *details: hold.wait(30) and None)

    async def run():
        engine = Engine(model, stop_token_ids=[], max_batch=1, max_queue=1)
        jobs = [Job(prompt(1, 5)[0].tolist(), max_new_tokens=2) for _ in range(6)]
        taken, busy = [], 0
        for job in jobs:
            try:
                engine.submit(job)
                taken.append(job)
                await asyncio.sleep(0.05)
            except Busy:
                busy += 1
        hold.set()
        found = [await events_of(job) for job in taken]
        engine.close()
        with pytest.raises(Closing):
            engine.submit(Job([1], max_new_tokens=1))
        return busy, found

    try:
        busy, found = asyncio.run(run())
    finally:
        hook.remove()
    assert busy >= 1 and all(one[-1] == Ended("length") for one in found)


def test_a_request_that_fails_tells_so_and_takes_no_other_with_it():
    engine = Engine(tiny_model("llama"), stop_token_ids=[], max_batch=4)
    bad, good = answered(
        engine,
        [{"prompt_ids": [10**6], "max_new_tokens": 3}, {"prompt_ids": [1, 2], "max_new_tokens": 3}],
    )
    engine.close()
    assert bad[-1].reason == "error" and good[-1] == Ended("length")


def test_a_deadline_ends_an_answer():
    engine = Engine(tiny_model("llama"), stop_token_ids=[])
    late = answered(engine, [{"prompt_ids": [1, 2], "max_new_tokens": 3, "deadline": 0.0}])[0]
    engine.close()
    assert late == [Ended("timeout")]


def test_padding_that_all_rows_share_is_taken_out():
    model = tiny_model("llama")
    engine = Engine(model, stop_token_ids=[], max_batch=4)
    long, short = prompt(1, 120), prompt(1, 4, seed=3)
    found = answered(
        engine,
        [
            {"prompt_ids": long[0].tolist(), "max_new_tokens": 3},
            {"prompt_ids": short[0].tolist(), "max_new_tokens": 30},
        ],
    )
    engine.close()
    assert words(found[1]) == generate(prefill(model, short), max_new_tokens=30)[0].tolist()


def test_an_ensemble_judges_a_request_by_all_its_guards_and_answers_as_one():
    model = tiny_model("llama")
    second = random_guard("llama", "prefix_hidden").with_options(prefix_ids=(7, 8), prefix_text="w2 w3")
    third = random_guard("llama", probe_tokens=2)
    ensemble = GuardEnsemble([random_guard("llama"), second, third])
    rows = [prompt(1, length, seed=length)[0] for length in (3, 30, 9, 12, 5, 17, 4)]
    engine = Engine(model, stop_token_ids=[], guard=ensemble, max_batch=4)
    found = answered(engine, [{"prompt_ids": ids.tolist(), "max_new_tokens": 5} for ids in rows])
    engine.close()
    alone = [
        [judge_prompts(one, model, ids[None], None, AnswerRules(max_new_tokens=1)).verdicts[0] for ids in rows]
        for one in ensemble.members
    ]
    expected = [ensemble.combine(verdicts) for verdicts in zip(*alone, strict=True)]
    for ids, events, verdict in zip(rows, found, expected, strict=True):
        assert [one for one in events if isinstance(one, VerdictFell)] == events[:1]
        assert events[0].verdict.flagged == verdict.flagged
        assert events[0].verdict.probe_tokens == verdict.probe_tokens
        if not verdict.flagged:
            assert words(events) == generate(prefill(model, ids[None]), max_new_tokens=5)[0].tolist()
    assert 0 < sum(one.flagged for one in expected) < len(rows)
    assert engine.running == 0


def test_a_random_member_judges_each_request_alone():
    members = [random_guard("llama", "prefix_hidden"), random_guard("llama", probe_tokens=2)]
    engine = Engine(tiny_model("llama"), stop_token_ids=[], guard=GuardEnsemble(members, "random"), max_batch=4)
    found = answered(engine, [{"prompt_ids": [1, 2, 3], "max_new_tokens": 0}] * 24)
    engine.close()
    # All of 24 draws by one member: 2 ** -23.
    assert {events[0].verdict.tier for events in found} == {"prefix_hidden", "probe_hidden"}
