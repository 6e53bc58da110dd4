"""Slots of weights: whose turn it is, what is copied, and tensors that savers take at rest."""

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import nn

from featherweight.errors import ConfigError, DeviceError
from featherweight.nn.weight_slots import WeightSlots


def layers(count=4):
    torch.manual_seed(0)
    return [nn.Linear(5, 3) for _ in range(count)]


def test_a_layer_computes_in_its_slot_as_at_rest_and_parameters_stay_the_same_objects():
    stack = layers()
    parameters = [p for layer in stack for p in layer.parameters()]
    x = torch.ones(2, 5)
    expected = [layer(x) for layer in stack]
    slots = WeightSlots(stack, 2)
    for index, layer in enumerate(stack):
        with slots.bound(index, index + 1):
            assert torch.equal(layer(x), expected[index])
    slots.close()
    assert all(a is b for a, b in zip(parameters, (p for layer in stack for p in layer.parameters()), strict=True))
    assert all(torch.equal(layer(x), y) for layer, y in zip(stack, expected, strict=True))


def test_what_changes_in_a_slot_comes_back_and_what_is_not_said_to_change_does_not():
    stack = layers(2)
    slots = WeightSlots(stack, 1)
    for changes in (True, False):
        before = stack[0].weight.clone()
        with slots.bound(0, changes=changes), torch.no_grad():
            stack[0].weight.add_(1)
        assert torch.equal(stack[0].weight, before + 1 if changes else before)
    assert slots.written_bytes == slots.units[0].trained_bytes


def test_savers_take_the_tensors_at_rest(tmp_path):
    # Mutation: views of one buffer, which safetensors refuses and torch.save writes whole.
    model = nn.Sequential(*layers())
    before = {name: one.clone() for name, one in model.state_dict().items()}
    WeightSlots(list(model), 2)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert all(torch.equal(one, before[name]) for name, one in load_file(tmp_path / "model.safetensors").items())


def test_slots_that_are_all_in_use_and_tensors_that_share_memory_are_refused():
    slots = WeightSlots(layers(), 1)
    slots.bind(0)
    with pytest.raises(ConfigError, match="slots=1 are all in use when layer 1 is called"):
        slots.bind(1)
    shared = layers(2)
    shared[1].weight = nn.Parameter(shared[0].weight.detach())
    with pytest.raises(ConfigError, match="layer 1 has a tensor .* that shares its memory"):
        WeightSlots(shared, 2)
    with pytest.raises(DeviceError, match="without values; expected weights"):
        WeightSlots([nn.Linear(2, 2, device="meta")], 2)
