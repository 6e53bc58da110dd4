"""Sums of whole gradients and of the cores of tensors."""

import math

import pytest
import torch
from torch import nn

from featherweight.optim import AdamW, TensorGaLoreAdamW
from featherweight.optim.backward.step_sum import FullSum, TensorSum


def random(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sum_and_twin(make, kind, shape, dtype=torch.float32):
    weights = [nn.Parameter(random(shape, 9, dtype)) for _ in range(2)]
    ours, twin = (make([weight]) for weight in weights)
    member = ours.member(weights[0], ours.param_groups[0])
    step = ours.step_of(weights[0])
    return (FullSum(step, member) if kind is FullSum else kind(step, member, step.tensor(member))), twin, weights


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_full_sum_steps_as_the_summed_gradient(factor):
    total, twin, (ours, theirs) = sum_and_twin(AdamW, FullSum, (6, 5))
    grads = [random((6, 5), seed) for seed in range(3)]
    for grad in grads:
        total.add(grad.clone())
    theirs.grad = (grads[0] + grads[1] + grads[2]) * factor
    assert total.squared_norm() == pytest.approx(float((theirs.grad / factor).square().sum()), rel=1e-5)
    assert total.update_(factor) == 0
    twin.step()
    assert torch.equal(ours, theirs)


def test_a_sum_that_is_not_finite_is_left_out():
    total, _, (weight, _) = sum_and_twin(AdamW, FullSum, (6, 5))
    before = weight.detach().clone()
    total.add(torch.full((6, 5), float("inf")))
    assert math.isnan(total.squared_norm())
    assert total.update_(1.0) == 1 and torch.equal(weight, before)


def test_a_sum_of_cores_steps_as_the_core_of_the_sum():
    def make(params):
        return TensorGaLoreAdamW(params, rank=0.3, update_proj_gap=100, min_numel=1, rule="sgd")

    shape = (6, 5, 4, 3)
    total, twin, (ours, theirs) = sum_and_twin(make, TensorSum, shape, torch.complex128)
    grads = [random(shape, seed, torch.complex128) for seed in range(3)]
    for grad in grads:
        total.add(grad)
    theirs.grad = grads[0]
    twin.step()  # takes the same first basis, which the sum fits to its first gradient
    core = (
        twin.step_of(theirs).tensor(twin.member(theirs, twin.param_groups[0])).project(grads[0] + grads[1] + grads[2])
    )
    torch.testing.assert_close(total.core, core[0], rtol=1e-10, atol=1e-10)
    assert total.update_(1.0) == 0 and not torch.equal(ours, theirs)
