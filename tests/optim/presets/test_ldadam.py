"""LDAdam against a slow twin, and the balance that its error feedback keeps."""

import pytest
import torch
from low_rank_twins import LDAdam, assert_follows, gradients, is_left, nearest_basis
from torch import nn

from featherweight.errors import ConfigError
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import LDAdamW
from featherweight.optim.policies.refresh import smoothed_iteration

SHAPES = [(7, 11), (11, 7), (8, 8)]
OPTIONS = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "scale": 0.5}


def build(shape, proj_type, *, rank=3, policy="rotate", **options):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    group = {"params": [weight], "rank": rank, "proj_type": proj_type, "moment_policy": policy}
    optimizer = LDAdamW([group], **OPTIONS, **options)
    return optimizer, weight, start


def stored_basis(optimizer, weight):
    state = optimizer.state[weight]
    return (state["basis_left"] if "basis_left" in state else state["basis_right"]).clone()


def follow(shape, proj_type, policy="rotate", steps=10, *, error_feedback):
    left = is_left(shape, proj_type)
    keys = {"error_feedback": error_feedback}
    optimizer, weight, start = build(shape, proj_type, policy=policy, basis_smoothing=0.7, **keys)
    twin = LDAdam(start if left else start.T, smoothing=0.7, rotates=policy == "rotate", **keys, **OPTIONS)

    def take_first_basis():
        if twin.basis is None:
            twin.basis = stored_basis(optimizer, weight)

    # Measured 6e-16. Mutations: a mean without bias correction, the weights of
    # the two parts of B swapped, or old^T new for new^T old differ by 1e-2.
    grads = gradients(shape, steps, seed=1, sizes=(1.0, 3.0, 0.5))
    assert_follows(optimizer, weight, twin, grads, left, before_twin=take_first_basis)
    return optimizer, weight, twin, left


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
@pytest.mark.parametrize("policy", ["rotate", "keep"])
def test_steps_without_error_feedback_equal_the_twin(shape, proj_type, policy):
    optimizer, weight, twin, left = follow(shape, proj_type, policy, error_feedback=False)
    span, expected = stored_basis(optimizer, weight), twin.basis
    torch.testing.assert_close(span @ span.T, expected @ expected.T, rtol=0, atol=1e-10)
    assert int(optimizer.state[weight]["refresh_count"]) == 10  # a refresh at every step


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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("shape", [(9, 13), (13, 9), (8, 8), (5, 5)])
def test_smoothed_iteration_equals_the_explicit_matrix(side, smoothing, shape):
    generator = torch.Generator().manual_seed(2)
    rank = 4
    length = shape[0] if side == "left" else shape[1]
    basis = torch.linalg.qr(torch.randn(length, rank, generator=generator, dtype=torch.float64))[0]
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    old = MatrixSubspace(**{side: basis})
    mean = torch.randn(old.core_shape(shape), generator=generator, dtype=torch.float64)
    back = basis @ mean if side == "left" else mean @ basis.T
    explicit = smoothing * back + (1 - smoothing) * grad
    product = explicit @ (explicit.T @ basis) if side == "left" else explicit.T @ (explicit @ basis)
    expected = nearest_basis(torch.linalg.qr(product)[0], basis)
    fresh = getattr(smoothed_iteration(grad, old, mean, smoothing), side)
    # The columns themselves agree: a span alone would hide a wrong order.
    torch.testing.assert_close(fresh, expected, rtol=0, atol=1e-9)


def test_error_feedback_needs_a_tensor_of_the_weights_size_and_is_off_by_default():
    plain, weight, _ = build((8, 12), "std")
    kept, _, _ = build((8, 12), "std", error_feedback=True)
    assert "error" not in plain.state[weight]
    assert kept.state_bytes() - plain.state_bytes() == weight.numel() * weight.element_size()


@pytest.mark.parametrize("key", [{"rule": "sgd"}, {"residual": "fira"}])
def test_error_feedback_refuses_what_it_is_not_defined_for(key):
    with pytest.raises(ConfigError, match="error_feedback=True is not allowed"):
        LDAdamW([{"params": [nn.Parameter(torch.ones(6, 8))], "rank": 2, **key}], error_feedback=True)
