"""Tensors that wait on the host: the same objects, with what they held when they left."""

import gc

import pytest
import torch

from featherweight.nn.host_tensors import HostTensors


def test_a_tensor_leaves_and_comes_back_as_the_same_object(monkeypatch):
    # Mutations: a second departure that writes over the first, memory of the device that somebody still reads.
    monkeypatch.setattr(HostTensors, "poison", True)
    waiting, state = HostTensors(torch.device("cpu")), torch.arange(6.0).view(2, 3)
    seen = state.detach()
    waiting.leave([state])
    waiting.leave([state])
    assert bool(seen.isnan().all()) and torch.equal(state, torch.arange(6.0).view(2, 3))
    memory = state.data_ptr()
    waiting.come([state])
    state.mul_(2)
    waiting.come([state])  # it is there
    assert (waiting.read_bytes, waiting.written_bytes) == (24, 24)
    waiting.leave([state])
    assert state.data_ptr() == memory and state[1, 2] == 10  # one memory of the host for each tensor


@pytest.mark.gpu
def test_what_a_checkpoint_has_left_on_the_host_comes_to_the_device():
    waiting, state = HostTensors(torch.device("cuda", 0)), torch.ones(2, dtype=torch.int8)
    waiting.come([state])
    assert state.device.type == "cuda" and waiting.read_bytes == 2
    waiting.leave([state])
    waiting.settle()
    assert state.is_pinned() and state.eq(1).all()


def test_a_new_tensor_is_not_taken_for_one_that_is_gone():
    waiting = HostTensors(torch.device("cpu"))
    for value in range(20):  # identities are used again
        state = torch.full((4,), float(value))
        waiting.leave([state])
        waiting.come([state])
        assert state.eq(value).all() and waiting.read_bytes == 16 * (value + 1)
        del state
        gc.collect()


def test_what_has_not_changed_is_not_copied_again_but_what_is_new_is():
    # Mutation: memory of another shape that is taken for what was there.
    waiting, weight = HostTensors(torch.device("cpu")), torch.ones(4)
    waiting.leave([weight], changed=False)
    assert waiting.holds(weight) and waiting.written_bytes == 16
    waiting.come([weight])
    waiting.leave([weight], changed=False)
    assert waiting.written_bytes == 16
    waiting.come([weight])
    weight.data = torch.full((6,), 2.0)
    waiting.leave([weight], changed=False)
    waiting.come([weight])
    assert weight.tolist() == [2.0] * 6 and not waiting.holds(weight)
