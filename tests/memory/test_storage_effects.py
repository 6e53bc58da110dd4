"""What an operator does to storages, and which tensors stand inside of a value."""

import types

import pytest
import torch

from featherweight.memory.storage_effects import effect_of, is_wrapper, tensors_in

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("operator", "effect"),
    [
        (aten.mm.default, (True, False)),
        (aten.view.default, (False, False)),
        (aten.add_.Tensor, (False, True)),
        (aten.mm.out, (False, True)),
        (aten._unsafe_view.default, (False, False)),  # its schema hides the alias
        (aten.lift_fresh.default, (True, True)),  # its schema promises one that is none
        ("a higher order", (True, True)),  # a higher-order operator has no schema
    ],
    ids=str,
)
def test_an_operator_makes_a_storage_changes_one_or_looks_at_one(operator, effect):
    assert effect_of(operator) == effect


def test_tensors_are_found_in_containers_and_objects_and_each_container_once():
    one, two, three = (torch.zeros(count) for count in (1, 2, 3))
    state = {"moments": [one, (two,)], "projector": types.SimpleNamespace(basis=three, rank=4), "name": "galore"}
    state["itself"] = state
    assert [len(tensor) for tensor in tensors_in(state)] == [1, 2, 3]
    assert list(tensors_in(torch.relu)) == list(tensors_in(None)) == list(tensors_in(7)) == []


def test_a_parameter_is_no_wrapper():
    assert not is_wrapper(torch.Tensor) and not is_wrapper(torch.nn.Parameter)
