import math

import pytest
import torch
from guard_models import random_guard, word_tokenizer
from tiny_models import prompt, tiny_model

from featherweight.guard.decoding_loop import decoding_loop
from featherweight.guard.guarded_model import GuardedModel


def stock(model, ids, count=10, **options):
    return model.generate(ids, max_new_tokens=count, **{"do_sample": False, "pad_token_id": 0, **options})


def guarded(name, guard, ids, **options):
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 10, **options}
    return GuardedModel(tiny_model(name), word_tokenizer(), guard).generate(ids, return_guard=True, **options)


def test_stock_generate_takes_the_loop_and_what_does_not_fit_is_refused():
    model, ids, guard = tiny_model("llama"), prompt(1, 9), random_guard("llama").with_threshold(math.inf)
    options = {"custom_generate": guard.decoding_loop, "guard": guard, "max_new_tokens": 4, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, do_sample=False, **options), stock(model, ids, 4))
    assert guard.decoding_loop is decoding_loop
    with pytest.raises(ValueError, match="num_beams=3 searches with beams"):
        model.generate(ids, num_beams=3, **options)
    with pytest.raises(ValueError, match="guard=None"):
        model.generate(ids, custom_generate=decoding_loop, max_new_tokens=4, pad_token_id=0)
    with pytest.raises(ValueError, match="assistant_model"):
        GuardedModel(model, word_tokenizer(), guard).generate(ids, assistant_model=model)
    with pytest.raises(ValueError, match="assisted decoding chooses several tokens at once"):
        model.generate(ids, prompt_lookup_num_tokens=2, **options)
    beside = {**options, "guard": guard.with_options(branch="parallel")}
    with pytest.raises(ValueError, match="num_return_sequences=3 with branch=parallel"):
        model.generate(ids, num_return_sequences=3, do_sample=True, **beside)
    three = guarded("llama", guard, ids, num_return_sequences=3, do_sample=True)
    assert three.sequences.shape[0] == 3 and len(three.guard) == 3


def test_processors_and_criteria_of_the_caller_count_for_the_answer_alone():
    ids, guard = prompt(1, 9), random_guard("llama").with_threshold(math.inf)
    for branch in ("sequential", "parallel"):
        chosen = guard.with_options(branch=branch)
        output = guarded("llama", chosen, ids, repetition_penalty=1.7)
        assert torch.equal(output.sequences, stock(tiny_model("llama"), ids, repetition_penalty=1.7))
        assert output.guard == guarded("llama", chosen, ids).guard
        third = int(output.sequences[0, 11])
        ended = guarded("llama", chosen, ids, repetition_penalty=1.7, eos_token_id=third)
        assert torch.equal(ended.sequences, stock(tiny_model("llama"), ids, repetition_penalty=1.7, eos_token_id=third))


def test_an_encoder_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    model = T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0)).eval()
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        model.generate(prompt(1, 5), custom_generate=decoding_loop, guard=random_guard("llama"), max_new_tokens=2)
