"""What error feedback keeps for the next gradient, against a slow twin and by its balance."""

import pytest
import torch
from ldadam_runs import OPTIONS, SHAPES, build, follow, stored_basis
from low_rank_twins import gradients
from torch import nn

from featherweight.errors import ConfigError
from featherweight.optim import LDAdamW


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
def test_steps_with_error_feedback_equal_the_twin(shape, proj_type):
    optimizer, weight, twin, left = follow(shape, proj_type, error_feedback=True)
    error = optimizer.state[weight]["error"]
    torch.testing.assert_close(error if left else error.T, twin.error, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_the_first_error_is_what_the_projection_left_out_and_joins_the_next_gradient(proj_type):
    optimizer, weight, start = build((7, 11), proj_type, error_feedback=True)
    first, second = gradients((7, 11), 2)
    weight.grad = first.clone()
    optimizer.step()
    basis = stored_basis(optimizer, weight)
    outside = first - (basis @ (basis.T @ first) if proj_type == "left" else (first @ basis) @ basis.T)
    error = optimizer.state[weight]["error"]
    torch.testing.assert_close(error, outside, rtol=0, atol=1e-12)
    # A second run gets the error by hand, and must make the same second step.
    other, other_weight, _ = build((7, 11), proj_type)
    for grad in (first, second + outside):
        other_weight.grad = grad.clone()
        other.step()
    weight.grad = second.clone()
    optimizer.step()
    torch.testing.assert_close(weight, other_weight, rtol=0, atol=1e-12)
    assert torch.equal(first, gradients((7, 11), 2)[0])  # the gradient itself is not changed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_error_feedback_loses_nothing_of_any_gradient(shape, proj_type):
    # With F = P m, the first moment as a full matrix, the algorithm gives exactly
    #   F_t = b1 F_(t-1) + (1 - b1) (G_t + E_(t-1) - E_t),
    # as what a rotation takes from F returns through E. Summed over the steps: the gradients are what F took in, and E.
    # Mutation: a lost part that is dropped, added with the other sign, or weighted with b1.
    beta1 = OPTIONS["betas"][0]
    optimizer, weight, _ = build(shape, proj_type, error_feedback=True)
    momentum, taken, given = torch.zeros(shape, dtype=torch.float64), 0, 0
    for grad in gradients(shape, 12, seed=3, sizes=(1.0, 4.0)):
        weight.grad = grad.clone()
        optimizer.step()
        state, basis = optimizer.state[weight], stored_basis(optimizer, weight)
        full = basis @ state["exp_avg"] if proj_type == "left" else state["exp_avg"] @ basis.T
        taken = taken + (full - beta1 * momentum) / (1 - beta1)
        given = given + grad
        momentum = full
    torch.testing.assert_close(taken + optimizer.state[weight]["error"], given, rtol=0, atol=1e-10)


def test_a_gradient_inside_the_subspace_leaves_no_error():
    # All gradients have the same row space of rank 3, so rank 3 loses nothing, in the moments neither.
    generator = torch.Generator().manual_seed(0)
    space = torch.randn(3, 11, generator=generator, dtype=torch.float64)
    optimizer, weight, _ = build((9, 11), "right", error_feedback=True)
    for _ in range(6):
        weight.grad = torch.randn(9, 3, generator=generator, dtype=torch.float64) @ space
        optimizer.step()
        assert optimizer.state[weight]["error"].abs().max() < 1e-12


def test_error_feedback_needs_a_tensor_of_the_weights_size_and_is_off_by_default():
    plain, weight, _ = build((8, 12), "std")
    kept, _, _ = build((8, 12), "std", error_feedback=True)
    assert "error" not in plain.state[weight]
    assert kept.state_bytes() - plain.state_bytes() == weight.numel() * weight.element_size()


@pytest.mark.parametrize("key", [{"rule": "sgd"}, {"residual": "fira"}])
def test_error_feedback_refuses_what_it_is_not_defined_for(key):
    with pytest.raises(ConfigError, match="error_feedback=True is not allowed"):
        LDAdamW([{"params": [nn.Parameter(torch.ones(6, 8))], "rank": 2, **key}], error_feedback=True)
