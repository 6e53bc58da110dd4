"""The loss chunk by chunk: ways to compute it, and what they hold."""

import pytest
import torch
from head_losses import D, N, V, assert_equal, gradients, make, ours, reference
from torch import nn

import featherweight as fw


@pytest.mark.parametrize("skip_ignored", [True, False])
@pytest.mark.parametrize("compute", ["forward", "backward"])
def test_every_way_to_compute_gives_the_same_gradients(compute, skip_ignored, generator):
    hidden, weight, bias, labels = make(generator)
    options = {"chunk_size": 10, "compute": compute, "skip_ignored": skip_ignored}

    loss = ours(hidden, weight, bias, labels, **options)

    expected = reference(hidden, weight, bias, labels)
    assert_equal([loss], [expected])
    assert_equal(gradients(loss, (hidden, weight, bias)), gradients(expected, (hidden, weight, bias)))


def test_a_retained_graph_can_be_walked_twice(generator):
    hidden, weight, _, labels = make(generator)
    loss = fw.linear_cross_entropy(hidden, weight, labels, chunk_size=10)

    first = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (hidden, weight))

    assert_equal(first, second, tolerance=0)


def test_without_grad_only_the_loss_is_computed(generator):
    hidden, weight, _, labels = make(generator)
    with torch.no_grad(), fw.measure_memory(nn.Linear(1, 1)) as memory:
        loss = fw.linear_cross_entropy(hidden, weight, labels, chunk_size=1)

    assert not loss.requires_grad
    assert not {(V, D), (N, D)} & {allocation.shape for allocation in memory.top_allocations(100)}
    with torch.inference_mode():
        assert fw.linear_cross_entropy(hidden, weight, labels, chunk_size=1) == loss


# Mutation: holding the logits of two chunks, or a second buffer of the vocabulary's size, breaks the bound.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_peak_is_the_weight_gradient_and_the_logits_of_one_chunk(dtype, generator):
    tokens, width, vocabulary, chunk = 4096, 64, 8000, 256
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    with fw.measure_memory(nn.Linear(1, 1)) as memory:
        fw.linear_cross_entropy(hidden, weight, labels, chunk_size=chunk).backward()

    bound = vocabulary * width * 4 + 6 * vocabulary * chunk + tokens * width * dtype.itemsize
    assert memory.peak_bytes <= 1.05 * bound  # 20 bytes a token for losses and row factors, and blocks of 0.5 MiB: 4 %
