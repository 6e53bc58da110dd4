import copy

import pytest
import torch
from tiny_models import prompt, tiny_model
from transformers.cache_utils import DynamicLayer

from featherweight.models.generation import extend, generate, prefill
from featherweight.models.growing_layer import ROOM_TOKENS, GrowingLayer


def states(rows, tokens, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 4, generator=draw), torch.randn(rows, 2, tokens, 6, generator=draw)


def filled(kind, rows=3, tokens=5):
    layer = kind()
    layer.update(*states(rows, tokens))
    return layer


def equal(one, other):
    return torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


CHANGES = {
    "crop": lambda layer: layer.crop(-2),
    "crop nothing": lambda layer: layer.crop(0),
    "crop more than there is": lambda layer: layer.crop(-9),
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])),
    "repeat": lambda layer: layer.batch_repeat_interleave(2),
    "select": lambda layer: layer.batch_select_indices(torch.tensor([1])),
    "reset": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_holds_what_the_layer_of_transformers_holds(change):
    own, stock = filled(GrowingLayer), filled(DynamicLayer)
    assert equal(own, stock)
    CHANGES[change](own)
    CHANGES[change](stock)
    assert own.get_seq_length() == stock.get_seq_length()
    rows = 3 if own.keys is None or own.get_seq_length() == 0 else len(own.keys)
    if stock.keys is not None and stock.get_seq_length() == 0:
        stock = DynamicLayer()  # an empty one of its own cannot go on
    for seed in range(1, 4):
        new = states(rows, seed, seed)
        for mine, expected in zip(own.update(*new), stock.update(*new), strict=True):
            assert torch.equal(mine, expected)


def test_a_token_is_written_behind_the_others_without_a_copy_of_them():
    layer = filled(GrowingLayer)
    place = layer.keys.data_ptr()
    for count in range(ROOM_TOKENS):
        layer.update(*states(3, 1, count))
        assert layer.keys.data_ptr() == place
    layer.update(*states(3, 1))
    assert layer.keys.data_ptr() != place and layer.get_seq_length() == 5 + ROOM_TOKENS + 1


def test_rows_from_behind_fill_the_places_of_those_that_go():
    layer, stock = filled(GrowingLayer), filled(DynamicLayer)
    place = layer.keys.data_ptr()
    layer.take_rows([2, 1])
    stock.reorder_cache(torch.tensor([2, 1]))
    assert equal(layer, stock) and layer.keys.data_ptr() == place


@pytest.mark.parametrize("rows", [[1, 0], [0, 0, 1, 1], [1]])
def test_rows_whose_places_are_still_needed_are_copied(rows):
    layer, stock = filled(GrowingLayer, 2), filled(DynamicLayer, 2)
    layer.take_rows(rows)
    stock.reorder_cache(torch.tensor(rows))
    assert equal(layer, stock)


def test_tokens_in_front_are_dropped_without_a_copy_and_those_inside_with_one():
    layer, stock = filled(GrowingLayer), filled(DynamicLayer)
    place = layer.keys.storage_offset()
    layer.take_columns([2, 3, 4])
    assert torch.equal(layer.keys, stock.keys[:, :, 2:]) and layer.keys.storage_offset() > place
    layer.take_columns([0, 2])
    assert torch.equal(layer.values, stock.values[:, :, [2, 4]])


def test_room_that_was_never_written_is_zero_where_a_shorter_row_has_padding():
    # Masked places count for nothing, but what is no number there would still spread: 0 * nan is nan.
    layer = filled(GrowingLayer, 1, 2)
    layer._room[0].fill_(float("nan"))
    layer._room[1].fill_(float("nan"))
    layer.update(*states(1, 3))
    layer.crop(-5)
    layer.update(*states(1, 6))
    layer.add_rows([filled(DynamicLayer, 1, 3), filled(DynamicLayer, 1, 9)])
    assert layer.keys.shape[:3] == (3, 2, 9) and bool(torch.isfinite(layer.keys).all())
    assert float(layer.keys[1, :, :6].abs().sum()) == 0 and float(layer.values[0, :, :3].abs().sum()) == 0


def test_a_copy_shares_nothing():
    layer = filled(GrowingLayer)
    other = copy.deepcopy(layer)
    before = layer.keys.clone()
    other.crop(-3)
    other.update(*states(3, 3, seed=7))
    assert torch.equal(layer.keys, before)
    layer.update(*states(3, 1, seed=8))
    assert not torch.equal(layer.keys[:, :, :5], other.keys)
    assert copy.deepcopy(GrowingLayer()).get_seq_length() == 0


def test_what_was_read_in_inference_mode_goes_on_outside_of_it():
    model, ids = tiny_model("llama"), prompt(1, 5)
    with torch.inference_mode():
        decoding = prefill(model, ids)
    extend(decoding, torch.tensor([3]))
    expected = prefill(model, torch.cat([ids, torch.tensor([[3]])], dim=1))
    assert torch.equal(generate(decoding, max_new_tokens=4), generate(expected, max_new_tokens=4))
