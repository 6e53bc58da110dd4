import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featherweight.nn.channel_delta import add_delta, changed_linear, mixed_delta

SHAPES = [(1, 1, 1, 1), (5, 7, 3, 2), (4, 6, 6, 6), (3, 5, 4, 0)]
"""T, N, M, S; with nothing, everything and a prime number selected."""


def problem(shape, axis, dtype=torch.float64, bias=True):
    tokens, inputs, outputs, selected = shape
    generator = torch.Generator().manual_seed(sum(shape))
    channels, other = (inputs, outputs) if axis == "input" else (outputs, inputs)
    selected = min(selected, channels)
    x = torch.randn(2, tokens, inputs, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(outputs, inputs, generator=generator, dtype=dtype)
    delta = torch.randn(selected, other, generator=generator, dtype=dtype).requires_grad_()
    indices = torch.randperm(channels, generator=generator)[:selected].sort().values.to(torch.int32)
    return x, weight, torch.randn(outputs, generator=generator, dtype=dtype) if bias else None, delta, indices


def dense(weight, delta, indices, axis, scaling=1.0):
    change = torch.zeros_like(weight)
    rows = change.t() if axis == "input" else change
    rows[indices.long()] = scaling * delta.detach()
    return weight + change


@pytest.mark.parametrize("axis", ["input", "output"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scaling", [1.0, -0.5])
def test_fused_step_and_plain_autograd_equal_the_dense_layer(shape, axis, scaling):
    x, weight, bias, delta, indices = problem(shape, axis)
    changed = dense(weight, delta, indices, axis, scaling).requires_grad_()
    expected = F.linear(x, changed, bias)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    grad_x, grad_weight = torch.autograd.grad(expected, (x, changed), grad)
    rows = grad_weight.t() if axis == "input" else grad_weight

    for result in (
        changed_linear(x, weight, bias, delta, indices, axis, scaling=scaling),
        add_delta(F.linear(x, weight, bias), x, delta, indices, axis, scaling),
    ):
        found_x, found_delta = torch.autograd.grad(result, (x, delta), grad)

        # float64; sums in another order. A wrong axis, a lost factor or a missing term is of size one.
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found_x, grad_x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found_delta, scaling * rows[indices.long()], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", ["input", "output"])
def test_gradcheck(axis):
    x, weight, bias, delta, indices = problem((5, 7, 3, 2), axis)

    assert torch.autograd.gradcheck(
        lambda x, d: changed_linear(x, weight, bias, d, indices, axis, scaling=2.0), (x, delta)
    )
    assert torch.autograd.gradcheck(lambda x, d: add_delta(F.linear(x, weight), x, d, indices, axis, 2.0), (x, delta))


@pytest.mark.parametrize("axis", ["input", "output"])
def test_a_change_that_is_written_gives_the_same_result_and_gradients(axis):
    x, weight, bias, delta, indices = problem((5, 7, 3, 2), axis)
    beside = changed_linear(x, weight, bias, delta, indices, axis)
    inside = changed_linear(x, dense(weight, delta, indices, axis), bias, delta, indices, axis, written=True)

    torch.testing.assert_close(inside, beside, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(inside.sum(), (x, delta)), torch.autograd.grad(beside.sum(), (x, delta)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_keeps_the_selected_inputs_and_nothing_else(dtype):
    _, weight, _, _, _ = problem((1, 64, 32, 8), "input", dtype)
    x = torch.randn(2, 50, 64).to(dtype).requires_grad_()
    delta = torch.zeros(8, 32, requires_grad=True)
    indices = torch.arange(0, 64, 8, dtype=torch.int32)
    known = {tensor.untyped_storage().data_ptr() for tensor in (weight, delta, indices)}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        changed_linear(x * 1, weight, None, delta, indices, "input")

    # Bytes of storages, not of views: a view of x would count as the whole of x.
    assert sum(kept.values()) == 100 * 8 * dtype.itemsize


def test_rows_of_a_batch_take_their_own_changes_and_padding_is_harmless():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    deltas = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    indices = torch.tensor([[0, 3], [5, -1], [-1, -1]])
    deltas[1, 1] = deltas[2] = 0
    x[1, :, 0] = x[2, :, 0] = torch.inf  # where padding would read

    result = mixed_delta(x, deltas, indices)

    torch.testing.assert_close(result[0], x[0][:, [0, 3]] @ deltas[0])
    torch.testing.assert_close(result[1], x[1][:, [5]] @ deltas[1, :1])
    assert not result[2].any()


def test_gradients_do_not_flow_into_frozen_weights():
    x, weight, bias, delta, indices = problem((5, 7, 3, 2), "input")
    layer = nn.Linear(7, 3, dtype=torch.float64)

    changed_linear(x, layer.weight, layer.bias, delta, indices, "input").sum().backward()

    assert layer.weight.grad is None and delta.grad is not None
