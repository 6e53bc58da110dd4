import torch
from guard_stand_in import generated_world, load_fixture, load_guard

from featherweight.guard.reading import collect, encode_judged, left_padded

PROMPTS = generated_world().prompts("test", "ordinary", 9)


def test_prompts_read_in_batches_are_those_read_alone_in_their_order():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    together = collect([guard], model, tokenizer, PROMPTS, batch_size=4)[0]
    for place, prompt in enumerate(PROMPTS):
        alone = collect([guard], model, tokenizer, [prompt])[0]
        assert together.evidence.probe_ids[place] == alone.evidence.probe_ids[0]
        for name in ("prompt_hidden", "prefix_hidden", "probe_hidden", "prefix_logprob"):
            ours, theirs = getattr(together.evidence, name)[place], getattr(alone.evidence, name)[0]
            # Hidden states of order 10 in float32, summed in another order.
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert sorted(together.snapshots) == [4, 8, 12]


def test_two_prefixes_are_read_on_one_prompt_as_each_alone():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    short = guard.with_options(prefix_ids=guard.options.prefix_ids[:2], probe_tokens=3)
    both = collect([short, guard], model, tokenizer, PROMPTS)
    assert both[1].evidence.probe_ids == collect([guard], model, tokenizer, PROMPTS)[0].evidence.probe_ids
    assert max(len(ids) for ids in both[0].evidence.probe_ids) == 3


def test_verdicts_of_batches_are_those_of_single_requests():
    model, tokenizer = load_fixture()
    guard = load_guard()
    together = guard.judge(model, tokenizer, PROMPTS, batch_size=4)
    alone = [guard.judge(model, tokenizer, [prompt])[0] for prompt in PROMPTS]
    assert [one.flagged for one in together] == [one.flagged for one in alone]


def test_rows_are_padded_on_the_left():
    ids, mask = left_padded([[1], [2, 3]])
    assert ids.tolist() == [[0, 1], [2, 3]] and mask.tolist() == [[0, 1], [1, 1]]


def test_a_text_is_the_turn_of_a_user():
    tokenizer = load_fixture()[1]
    assert encode_judged(tokenizer, "Hi") == encode_judged(tokenizer, [{"role": "user", "content": "Hi"}])
