"""Reducers of one process, of the older form, and where `layerwise` finds the one of a model."""

import copy

import torch

from featherweight.optim import GaLoreAdamW, layerwise
from featherweight.optim.reduce import LocalReducer, as_reducer, attach_reducer, attached_reducer


class Older:
    """A reducer that averages one tensor at a time."""

    world_size = 2

    def __init__(self):
        self.shapes = []

    def all_reduce(self, tensor, group):
        self.shapes.append(tuple(tensor.shape))


def test_a_reducer_of_the_older_form_averages_one_tensor_after_the_other():
    older = Older()
    reducer = as_reducer(older)
    reducer.require_same(["a"])
    reducer.mean_([torch.zeros(2), torch.zeros(3, 1)])
    assert older.shapes == [(2,), (3, 1)] and reducer.world_size == 2


def test_layerwise_finds_the_reducer_of_a_model_and_a_copy_has_none():
    model, older = torch.nn.Sequential(torch.nn.Linear(8, 8)), Older()
    attach_reducer(model, as_reducer(older))
    assert attached_reducer(copy.deepcopy(model)) is None
    optimizer = GaLoreAdamW(model.parameters(), rank=2)
    with layerwise(model, optimizer):
        model(torch.ones(2, 8)).sum().backward()
    assert (8, 2) in older.shapes and (8,) in older.shapes


def test_one_process_leaves_tensors_as_they_are():
    tensor = torch.ones(2)
    reducer = LocalReducer()
    reducer.mean_([tensor])
    reducer.all_reduce(tensor, {})
    reducer.require_same(["a"])
    assert tensor.tolist() == [1, 1] and as_reducer(reducer) is reducer
