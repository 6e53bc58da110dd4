"""A backward pass inside of a backward pass: state of the forward pass, and what is refused."""

import pytest
import torch
from chunked_modules import D, L, Norm, assert_equal, inputs
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError


def test_dropout_draws_the_same_numbers_again(generator):
    layer, x = Norm(dropout=0.5), inputs(generator)
    torch.manual_seed(3)
    output = fw.chunk(layer, x, chunk_size=10)
    expected_state = torch.get_rng_state()
    torch.manual_seed(99)  # what happens between the passes must not matter

    (gradient,) = torch.autograd.grad(output.sum(), x)

    torch.manual_seed(3)
    parts = [layer(part) for part in x.split(10, dim=1)]
    assert torch.equal(torch.get_rng_state(), expected_state)
    assert (output == 0).any() and torch.equal(output, torch.cat(parts, 1))
    assert_equal([gradient], torch.autograd.grad(torch.cat(parts, 1).sum(), x))


def test_the_backward_pass_leaves_the_random_generator_alone(generator):
    output = fw.chunk(Norm(dropout=0.5), inputs(generator), chunk_size=10)
    before = torch.get_rng_state()

    output.sum().backward()

    assert torch.equal(torch.get_rng_state(), before)


def test_autocast_settings_come_back_in_the_backward_pass(generator):
    layer, x = nn.Linear(D, D), torch.randn(L, D, generator=generator)
    seen = []

    def record(x, weight):
        seen.append(torch.nn.functional.linear(x, weight).dtype)
        return torch.nn.functional.linear(x, weight)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = fw.chunk(record, x, params=(layer.weight,), chunk_size=30)
        plain = record(x, layer.weight)
    ours, theirs = (torch.autograd.grad(out.float().sum(), layer.weight)[0] for out in (output, plain))

    assert set(seen) == {torch.bfloat16} and len(seen) == 5
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)  # each side rounds to bfloat16 once


def test_a_trainable_tensor_that_is_not_declared_is_an_error(generator):
    hidden_weight = inputs(generator, D, D)
    output = fw.chunk(lambda x: x @ hidden_weight, inputs(generator), chunk_size=10)

    with pytest.raises(ConfigError, match="neither x nor among params"):
        output.sum().backward()


def test_second_derivatives_are_refused(generator):
    x = inputs(generator)

    with pytest.raises(ConfigError, match="create_graph=True"):
        torch.autograd.grad(fw.chunk(Norm(), x, chunk_size=10).sum(), x, create_graph=True)
