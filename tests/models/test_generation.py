import copy

import pytest
import torch
from tiny_models import CROPPED, RECURRENT, WINDOW, prompt, tiny_model

from featherweight.errors import ConfigError, ShapeError
from featherweight.models.cache import cache_length
from featherweight.models.generation import (
    branch,
    extend,
    fork,
    generate,
    generate_arguments,
    prefill,
    prefill_branch,
    stop_token_ids_of,
    stream,
)
from featherweight.models.sampling import Sampling

EVERY = [*CROPPED, *RECURRENT]
# Logits of order 10 in float32, of which four layers summed in another order change the last digits.
ROUNDING = 1e-4


def stock(model, ids, count, **options):
    """What transformers' own loop generates."""
    return model.generate(ids, max_new_tokens=count, do_sample=False, **options)[:, ids.shape[1] :]


def logits_from_scratch(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("length", [1, 4, 11])
@pytest.mark.parametrize("name", EVERY)
def test_greedy_tokens_are_those_of_transformers(name, length):
    # 1 is the shortest prompt; 4 fills the window of 6 while it generates, 11 has filled it before.
    model, ids = tiny_model(name), prompt(2, length)
    assert torch.equal(generate(prefill(model, ids), max_new_tokens=12), stock(model, ids, 12))


@pytest.mark.parametrize("name", EVERY)
def test_rows_with_padding_on_the_left_generate_what_they_generate_alone(name):
    model = tiny_model(name)
    short, long = prompt(1, 3, seed=1), prompt(1, 9, seed=2)
    ids = torch.cat([torch.cat([torch.zeros(1, 6, dtype=torch.int64), short], dim=1), long])
    mask = torch.tensor([[0] * 6 + [1] * 3, [1] * 9])
    decoding = prefill(model, ids, mask)
    assert decoding.tokens() == [short[0].tolist(), long[0].tolist()]
    together = generate(decoding, max_new_tokens=8)
    assert torch.equal(together[:1], stock(model, short, 8))
    assert torch.equal(together[1:], stock(model, long, 8))


@pytest.mark.parametrize("name", EVERY)
def test_a_forced_prefix_is_read_as_if_it_had_stood_in_the_prompt(name):
    model, ids, forced = tiny_model(name), prompt(2, 7), prompt(1, 5, seed=3)[0]
    decoding = prefill(model, ids)
    logits = extend(decoding, forced)
    whole = torch.cat([ids, forced.expand(2, -1)], dim=1)
    # Mutation: a recurrent state that is dropped where several tokens are read at once changes the first digit.
    torch.testing.assert_close(logits, logits_from_scratch(model, whole)[:, 7:], rtol=0, atol=ROUNDING)
    assert torch.equal(generate(decoding, max_new_tokens=6), stock(model, whole, 6))


@pytest.mark.parametrize("name", EVERY)
def test_a_prompt_read_in_chunks_is_the_same_prompt(name):
    model, ids = tiny_model(name), prompt(1, 17)
    in_chunks, whole = prefill(model, ids, chunk_size=5), prefill(model, ids)
    torch.testing.assert_close(in_chunks.logits, whole.logits, rtol=0, atol=ROUNDING)
    assert torch.equal(generate(in_chunks, max_new_tokens=6), generate(whole, max_new_tokens=6))


@pytest.mark.parametrize("copies", [None, True])
@pytest.mark.parametrize("length", [3, 11])
@pytest.mark.parametrize("name", EVERY)
def test_a_branch_leaves_the_decoding_bit_for_bit_where_it_was(name, length, copies):
    # A prompt of 3 enters the window of 6 only inside the branch, which is a case of its own for a crop.
    model, ids = tiny_model(name), prompt(2, length)
    decoding = prefill(model, ids)
    untouched = generate(fork(decoding), max_new_tokens=8)
    for _ in range(2):
        with branch(decoding, copies=copies) as trial:
            extend(trial, prompt(1, 5, seed=4)[0])
            tried = generate(trial, max_new_tokens=4)
        assert tried.shape == (2, 4)
        assert decoding.length == length
    assert torch.equal(generate(decoding, max_new_tokens=8), untouched)


@pytest.mark.parametrize("name", CROPPED)
def test_a_branch_of_a_cache_that_can_go_back_copies_nothing(name):
    decoding = prefill(tiny_model(name), prompt())
    with branch(decoding) as trial:
        assert trial.cache is decoding.cache
        extend(trial, prompt(1, 4)[0])


@pytest.mark.parametrize("name", RECURRENT)
def test_a_branch_of_a_recurrent_state_works_on_a_copy(name):
    decoding = prefill(tiny_model(name), prompt())
    with branch(decoding) as trial:
        assert trial.cache is not decoding.cache


def test_windows_forget_again_after_a_branch():
    decoding = prefill(tiny_model("mistral"), prompt())
    with branch(decoding) as trial:
        generate(trial, max_new_tokens=9)
    generate(decoding, max_new_tokens=20)
    assert {layer.keys.shape[-2] for layer in decoding.cache.layers} == {WINDOW - 1}


def test_an_error_inside_a_branch_still_takes_it_back():
    decoding = prefill(tiny_model("llama"), prompt())
    with pytest.raises(KeyboardInterrupt), branch(decoding) as trial:
        extend(trial, torch.tensor([1, 2]))
        raise KeyboardInterrupt
    assert decoding.cache.get_seq_length() == decoding.length == 11


def test_tokens_are_handed_out_before_the_next_one_is_read():
    model = tiny_model("llama")
    decoding = prefill(model, prompt())
    tokens = stream(decoding, max_new_tokens=5)
    first = next(tokens)
    assert decoding.length == 11
    second = next(tokens)
    assert decoding.length == 12
    tokens.close()
    # Whoever stopped goes on from here; the second token is chosen anew, from the same logits.
    assert torch.equal(generate(decoding, max_new_tokens=1)[:, 0], second)
    assert torch.equal(decoding.token_ids[:, -1], first)


def test_rows_end_at_stop_tokens_and_the_stream_with_the_last_row():
    model, ids = tiny_model("llama"), prompt(3)
    free = generate(prefill(model, ids), max_new_tokens=12)
    stops = [int(free[0, 2]), int(free[1, 5])]
    ended = generate(prefill(model, ids), max_new_tokens=12, stop_token_ids=stops, pad_token_id=0)
    expected = stock(model, ids, 12, eos_token_id=stops, pad_token_id=0)
    assert torch.equal(ended, expected)
    assert (ended[0, 3:] == 0).all()
    one = generate(prefill(model, ids[:1]), max_new_tokens=12, stop_token_ids=stops)
    assert torch.equal(one[0], free[0, :3])


def test_processors_change_the_choice_as_they_do_in_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    model, ids = tiny_model("llama"), prompt(2)
    penalty = RepetitionPenaltyLogitsProcessor(1.7)
    ours = generate(prefill(model, ids), max_new_tokens=10, processors=[penalty])
    assert torch.equal(ours, stock(model, ids, 10, repetition_penalty=1.7))


def test_a_row_with_its_own_generator_does_not_depend_on_its_company():
    model, ids = tiny_model("llama"), prompt(3)
    sampling = Sampling(temperature=1.0)

    def seeded(rows):
        return [torch.Generator().manual_seed(row) for row in rows]

    together = generate(prefill(model, ids), max_new_tokens=8, sampling=sampling, generators=seeded(range(3)))
    alone = generate(prefill(model, ids[2:]), max_new_tokens=8, sampling=sampling, generators=seeded([2]))
    assert torch.equal(together[2:], alone)
    assert not torch.equal(together, generate(prefill(model, ids), max_new_tokens=8))


def test_stock_generate_goes_on_from_a_decoding_only_with_a_token_to_read():
    model, ids = tiny_model("llama"), prompt(1, 11)
    expected = stock(model, ids, 10)
    decoding = prefill(model, ids)
    # The trap: with a cache of all tokens, the slice of those still to read is [-0:], which is all of them.
    trapped = fork(decoding)
    model.generate(ids, past_key_values=trapped.cache, max_new_tokens=10, do_sample=False)
    assert trapped.cache.get_seq_length() != 11 + 10 - 1
    went_on = model.generate(**generate_arguments(decoding), max_new_tokens=10, do_sample=False)
    assert torch.equal(went_on[:, 11:], expected)
    assert decoding.cache.get_seq_length() == 11 + 10 - 1


def test_hidden_states_are_those_of_the_last_token():
    model, ids = tiny_model("llama"), prompt(2)
    decoding = prefill(model, ids, output_hidden_states=True)
    with torch.no_grad():
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(decoding.hidden_states) == len(expected)
    for ours, theirs in zip(decoding.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs[:, -1])
    extend(decoding, torch.tensor([1]))
    assert decoding.hidden_states is None


def test_a_model_inside_peft_generates_with_its_adapter():
    peft = pytest.importorskip("peft")
    base = copy.deepcopy(tiny_model("llama"))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    ids = prompt()
    assert torch.equal(
        generate(prefill(model, ids), max_new_tokens=8),
        model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[:, 11:],
    )


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_of_an_adapter_are_refused_instead_of_read_at_every_pass(kind):
    # PEFT puts them in front of each pass: a cache would get them again with every token, and other logits come out.
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(copy.deepcopy(tiny_model("llama")), config).eval()
    with pytest.raises(ConfigError, match="virtual tokens in front of every pass"):
        prefill(model, prompt())
    with pytest.raises(ConfigError, match="virtual tokens"), prefill_branch(model, prompt(), prompt(1, 2)[0]):
        pass


def test_stop_tokens_come_from_the_generation_settings():
    model = tiny_model("llama")
    assert stop_token_ids_of(model) == ()

    class Chat:
        class generation_config:  # noqa: N801
            eos_token_id = [2, 7]

    assert stop_token_ids_of(Chat()) == (2, 7)


def test_what_cannot_be_read_is_refused():
    model = tiny_model("llama")
    with pytest.raises(ShapeError, match="hold no prompt"):
        prefill(model, torch.empty(1, 0, dtype=torch.int64))
    with pytest.raises(ShapeError, match="padding on the left"):
        prefill(model, prompt(), torch.tensor([[1] * 10 + [0]]))
    with pytest.raises(ShapeError, match="padding on the left"):
        prefill(model, prompt(), torch.zeros(1, 11, dtype=torch.int64))
    with pytest.raises(ShapeError, match="do not fit a batch of 1 rows"):
        extend(prefill(model, prompt()), prompt(2, 3))
    model.train()
    try:
        with pytest.raises(ConfigError, match=r"Call model.eval\(\)"):
            prefill(model, prompt())
    finally:
        model.eval()


def test_criteria_end_rows_as_stop_tokens_do():
    model, ids = tiny_model("llama"), prompt(2)
    free = generate(prefill(model, ids), max_new_tokens=9)
    short = generate(prefill(model, ids), max_new_tokens=9, criteria=[lambda read: read[:, -1] == free[:, 4]])
    assert torch.equal(short, free[:, : short.shape[1]]) and short.shape[1] <= 5


@pytest.mark.parametrize("last_only", [True, False])
def test_a_prompt_and_a_branch_behind_it_are_read_in_one_pass_as_if_in_two(last_only):
    model, ids, forced = tiny_model("llama"), prompt(2, 9), prompt(1, 4, seed=3)[0]
    two = prefill(model, ids, output_hidden_states=True)
    prompt_logits, prompt_states = two.logits, two.hidden_states
    logits = extend(two, forced, last_logits_only=last_only, output_hidden_states=True)
    passes = []
    hook = model.register_forward_hook(lambda *found: passes.append(found))
    reading = prefill_branch(model, ids, forced, last_logits_only=last_only, output_hidden_states=True)
    with reading as (decoding, trial, found):
        torch.testing.assert_close(found, logits, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(decoding.logits, prompt_logits, rtol=0, atol=ROUNDING)
        for mine, other in ((decoding.hidden_states, prompt_states), (trial.read_states, two.read_states)):
            for one, expected in zip(mine, other, strict=True):
                torch.testing.assert_close(one, expected, rtol=0, atol=ROUNDING)
        assert torch.equal(trial.token_ids, two.token_ids)
        # Activations that wait for a backward pass would be kept as long as the rows are.
        kept = [found, *trial.read_states, *(layer.keys for layer in trial.cache.layers)]
        assert not any(one.requires_grad for one in kept)
        assert torch.equal(generate(trial, max_new_tokens=3), generate(two, max_new_tokens=3))
    hook.remove()
    assert len(passes) == 1 + 2 + 2  # both went on by two steps
    assert decoding.length == cache_length(decoding.cache) == 9
    assert torch.equal(generate(decoding, max_new_tokens=8), stock(model, ids, 8))


def test_rows_at_the_end_of_the_context_stay_at_its_last_place():
    # GPT-2 has a vector for each place, and none behind the last one.
    model = tiny_model("gpt2")
    room = model.config.max_position_embeddings
    mask = torch.ones((2, room), dtype=torch.int64)
    mask[1, : room - 4] = 0
    decoding = prefill(model, prompt(2, room), mask)
    with pytest.raises(IndexError):
        extend(fork(decoding), torch.tensor([3]))
    alone = prefill(model, decoding.token_ids[1:, -4:])
    torch.testing.assert_close(
        extend(decoding, torch.tensor([3]), context=room)[1:],
        extend(alone, torch.tensor([3])),
        rtol=0,
        atol=ROUNDING,
    )
