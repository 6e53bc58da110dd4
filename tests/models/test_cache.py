import pytest
import torch
from tiny_models import CROPPED, RECURRENT, prompt, tiny_model

from featherweight.errors import ShapeError
from featherweight.models.cache import cache_length, can_crop, copy_cache, crop_cache, remember_past
from featherweight.models.generation import extend, prefill


def states(cache):
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


@pytest.mark.parametrize("length", [3, 11])
@pytest.mark.parametrize("name", CROPPED)
def test_a_crop_gives_back_the_same_bits(name, length):
    decoding = prefill(tiny_model(name), prompt(2, length))
    before = states(decoding.cache)
    remember_past(decoding.cache)
    extend(decoding, prompt(1, 5, seed=1)[0])
    crop_cache(decoding.cache, length)
    for (keys, values), (old_keys, old_values) in zip(states(decoding.cache), before, strict=True):
        assert torch.equal(keys, old_keys) and torch.equal(values, old_values)


def test_a_crop_to_the_present_length_changes_nothing():
    cache = prefill(tiny_model("llama"), prompt()).cache
    crop_cache(cache, 11)
    assert cache_length(cache) == 11


@pytest.mark.parametrize("length", [0, -1, 12])
def test_a_crop_that_would_empty_the_cache_is_refused(length):
    # transformers itself drops more than there is without a word.
    cache = prefill(tiny_model("llama"), prompt()).cache
    with pytest.raises(ShapeError, match="expected 1 to 11"):
        crop_cache(cache, length)
    assert cache_length(cache) == 11


def test_a_window_that_has_forgotten_says_what_should_have_been_done():
    decoding = prefill(tiny_model("mistral"), prompt())
    extend(decoding, prompt(1, 5)[0])
    with pytest.raises(ShapeError, match="remember_past"):
        crop_cache(decoding.cache, 11)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_state_cannot_go_back_and_a_copy_of_it_stands_alone(name):
    model = tiny_model(name)
    decoding = prefill(model, prompt())
    assert not can_crop(decoding.cache)
    with pytest.raises(ShapeError, match="cannot go back"):
        crop_cache(decoding.cache, 5)
    kept = decoding.cache
    decoding.cache = copy_cache(kept)
    first = extend(decoding, torch.tensor([5, 6]))
    decoding.cache = kept
    assert torch.equal(extend(decoding, torch.tensor([5, 6])), first)


def test_a_cache_without_attention_counts_no_tokens():
    assert cache_length(prefill(tiny_model("mamba2"), prompt()).cache) is None
    assert cache_length(prefill(tiny_model("qwen3_next"), prompt()).cache) == 11
