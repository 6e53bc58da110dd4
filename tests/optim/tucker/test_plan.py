"""How tensors are viewed and which bytes their states take, from shapes alone."""

import math

import pytest
import torch
from tensor_steps import build, gradients, train, weight_of
from torch import nn

from featherweight.errors import ConfigError
from featherweight.linalg.tucker_ranks import tucker_ranks
from featherweight.optim import AdamW, TensorGaLoreAdamW


def test_bytes_are_those_of_the_formula_and_the_second_moment_is_real():
    shape, ranks = (24, 24, 8, 5), (17, 17, 6, 3)
    weight = weight_of(shape, torch.complex64)
    optimizer = build(weight, rank=0.25)
    train(optimizer, weight, gradients(1, shape, torch.complex64))
    state = optimizer.state[weight]
    assert tucker_ranks(shape, 0.25) == ranks
    numel, factors = math.prod(ranks), sum(n * r for n, r in zip(shape, ranks, strict=True))
    counters = 4 * 8
    assert sum(each.nbytes for each in state.values()) == (8 + 4) * numel + 8 * factors + counters
    assert state["exp_avg_sq"].shape == ranks and state["exp_avg_sq"].dtype == torch.float32
    # Full Adam: 12 bytes a complex number instead of torch's 16.
    assert AdamW([weight]).state_bytes() == 12 * weight.numel() + 8


def test_three_dimensional_operators_have_genuine_complex_weights_of_order_five():
    weight = weight_of((6, 6, 4, 4, 3))
    optimizer = build(weight, rank=0.2)
    train(optimizer, weight, gradients(3, (6, 6, 4, 4, 3)))
    assert optimizer.layouts[weight].plan.shape == (6, 6, 4, 4, 3)


def test_pairs_of_reals_are_complex_numbers_if_the_group_says_so():
    one = weight_of()
    two = nn.Parameter(torch.view_as_real(one.detach()).clone())
    grads = gradients(6)
    train(build(one), one, grads)
    train(build(two, complex_pair=True), two, [torch.view_as_real(grad) for grad in grads])
    assert torch.equal(torch.view_as_real(one.detach()), two.detach())
    with pytest.raises(ConfigError, match="last axis of 2"):
        build(weight_of(dtype=torch.float64), complex_pair=True)


def test_small_and_flat_tensors_keep_full_moments():
    weights = [weight_of((4, 4, 4)), weight_of((40, 30, 1), torch.float32), weight_of((5,), torch.float32)]
    optimizer = TensorGaLoreAdamW(weights, rank=0.25)
    assert [optimizer.layouts[weight].rank for weight in weights] == [None, None, None]
