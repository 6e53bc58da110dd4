"""What the head may be, and which of its gradients are formed."""

import pytest
import torch
from head_losses import D, N, V, assert_equal, gradients, make, ours, reference
from torch import nn
from torch.nn import functional as F

import featherweight as fw
from featherweight.nn.int8_linear import to_int8_


def test_frozen_head_computes_no_weight_gradient(generator):
    hidden, weight, bias, labels = make(generator)
    weight, bias = weight.detach(), bias.detach()
    with fw.measure_memory(nn.Linear(1, 1)) as memory:
        loss = ours(hidden, weight, bias, labels, chunk_size=1)
        (gradient,) = gradients(loss, [hidden])
    shapes = {allocation.shape for allocation in memory.top_allocations(100)}

    assert_equal([gradient], gradients(reference(hidden, weight, bias, labels), [hidden]))
    assert (V, D) not in shapes


def test_frozen_hidden_states_leave_the_gradient_of_the_head(generator):
    hidden, weight, bias, labels = make(generator)

    loss = ours(hidden.detach(), weight, bias, labels, chunk_size=10)

    expected = gradients(reference(hidden, weight, bias, labels), [weight, bias])
    assert_equal(gradients(loss, [weight, bias]), expected)


def test_tied_embedding_gets_the_sum_of_both_gradients(generator):
    table = nn.Parameter(torch.randn(V, D, dtype=torch.float64, generator=generator))
    tokens, labels = torch.randint(V, (2, N), generator=generator)

    def total(loss):
        return gradients(loss(F.embedding(tokens, table).tanh(), table, labels), [table])

    assert_equal(
        total(lambda *arguments: fw.linear_cross_entropy(*arguments, chunk_size=10)),
        total(lambda hidden, weight, labels: reference(hidden, weight, None, labels)),
    )


class LoraHead(nn.Module):
    """A frozen matrix and two thin trainable ones, as PEFT computes it."""

    def __init__(self, generator):
        super().__init__()
        self.base = nn.Linear(D, V, dtype=torch.float64).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, D, dtype=torch.float64, generator=generator))
        self.up = nn.Parameter(torch.randn(V, 2, dtype=torch.float64, generator=generator))

    def forward(self, hidden):
        return self.base(hidden) + hidden @ self.down.t() @ self.up.t()


@pytest.mark.parametrize("compute", ["forward", "backward"])
def test_a_head_with_adapters_trains_them_alone(compute, generator):
    head = LoraHead(generator)
    calls = []
    head.up.register_hook(lambda gradient: calls.append("gradient"))
    hidden, _, _, labels = make(generator)
    tensors = (hidden, head.down, head.up)

    loss = fw.linear_cross_entropy(hidden, head, labels, chunk_size=10, compute=compute)
    expected = F.cross_entropy(head(hidden), labels)

    assert_equal([loss], [expected])
    found = gradients(loss, tensors)
    assert calls == ["gradient"]
    assert_equal(found, gradients(expected, tensors))
    assert dict(head.named_parameters())["up"] is head.up  # the stand-ins of the backward pass are gone


@pytest.mark.parametrize("compute", ["forward", "backward"])
def test_an_int8_head_gives_the_loss_of_its_values_and_its_handle_the_gradient(compute, generator):
    head = nn.Linear(12, 37, bias=False)
    plain = nn.Linear(12, 37, bias=False)
    quantized = to_int8_(head)
    plain.weight.data = quantized.int8_weight().dequantize()
    hidden = torch.randn(23, 12, generator=generator)
    labels = torch.randint(37, (23,), generator=generator)

    one, two = (hidden.clone().requires_grad_() for _ in range(2))
    loss = fw.linear_cross_entropy(one, quantized, labels, chunk_size=5, compute=compute)
    expected = F.cross_entropy(plain(two), labels)
    loss.backward()
    expected.backward()

    # float32 sums over chunks in another order.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(head.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-7)
