import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from featherweight.errors import DeviceError
from featherweight.memory import measure_memory
from featherweight.nn import offload
from featherweight.nn.offload import HostRing
from featherweight.simulated import SimulatedDevice, counting_only


def layers(count):
    torch.manual_seed(0)
    return nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(count))


def run(stack, x, ring=None):
    for layer in stack:
        if ring is None:
            x = checkpoint(layer, x, use_reentrant=False)
        else:
            with ring.storing():
                x = checkpoint(layer, x, use_reentrant=False)
    return x.square().sum()


def gradients(stack, ring=None, retain=False):
    x = torch.linspace(-1, 1, 64 * 16).view(64, 16).requires_grad_()
    loss = run(stack, x, ring)
    tensors = [x, *stack.parameters()]
    return [torch.autograd.grad(loss, tensors, retain_graph=retain and turn == 0) for turn in range(1 + retain)]


def test_offloaded_inputs_give_the_same_bits():
    stack, ring = layers(5), HostRing(5)

    (found,), (expected,) = gradients(stack, ring), gradients(stack)

    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_retained_graph_can_be_walked_twice():
    first, second = gradients(layers(4), HostRing(4), retain=True)

    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_host_memory_holds_the_inputs_until_their_graph_is_gone():
    stack, ring = layers(5), HostRing(5)
    loss = run(stack, torch.ones(64, 16, requires_grad=True), ring)
    assert ring.host_bytes == 5 * 64 * 16 * 4

    loss.backward()
    del loss

    assert ring.host_bytes == 0


# Mutation: keeping the inputs on the device too, or fetching all at once, makes the peak grow by two sizes per layer.
def test_every_layer_takes_host_memory_once_and_nothing_else():
    def peak(count, ring):
        stack = layers(count).requires_grad_(False)
        x = torch.ones(1024, 16, requires_grad=True)
        with measure_memory(stack) as memory:
            run(stack, x, ring).backward()
        return memory.peak_bytes - memory.peak_by_category["weights"]

    size = 1024 * 16 * 4
    assert peak(12, HostRing(12)) - peak(4, HostRing(4)) <= 8.5 * size  # host memory of the CPU counts as well


def test_too_little_host_memory_is_said_before_the_first_layer(monkeypatch):
    monkeypatch.setattr(offload, "available_host_bytes", lambda: 10_000)

    with pytest.raises(DeviceError, match=r"5 tensors of \(64, 16\)"):
        run(layers(5), torch.ones(64, 16, requires_grad=True), HostRing(5))
    with counting_only(SimulatedDevice("cuda")):  # which is of another host
        HostRing(5)._check(torch.ones(64, 16))


@pytest.mark.gpu
def test_offloading_from_a_gpu_gives_the_same_numbers():
    stack, ring = layers(6).cuda(), HostRing(6)
    for _ in range(3):
        results = []
        for one in (ring, None):
            x = torch.linspace(-1, 1, 4096 * 16, device="cuda").view(-1, 16).requires_grad_()
            results.append(torch.autograd.grad(run(stack, x, one), [x, *stack.parameters()]))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
