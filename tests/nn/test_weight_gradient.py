"""Sums of weight gradients over chunks."""

import pytest
import torch
from head_losses import assert_equal, gradients, make, reference
from torch.nn import functional as F

import featherweight as fw


# Mutation: writing .grad by hand gives the ratios 2 and 3 here (the paper's official code does).
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_accumulated_head_gradient_is_that_of_one_large_batch(micro_batches, as_tensor, generator):
    parts = [make(generator, ignored=0.2 * (index + 1)) for index in range(micro_batches)]
    weight = parts[0][1]
    count = sum(int((labels != -100).sum()) for *_, labels in parts)
    for hidden, _, _, labels in parts:
        num_items = torch.tensor(count) if as_tensor else count
        fw.linear_cross_entropy(hidden, weight, labels, num_items_in_batch=num_items, chunk_size=10).backward()

    whole = reference(torch.cat([p[0] for p in parts]), weight, None, torch.cat([p[3] for p in parts]))
    (expected,) = gradients(whole, [weight])
    assert_equal([weight.grad], [expected])


def relative_error(ours, exact):
    return ((ours.double() - exact).norm() / exact.norm()).item()


# Mutation: summing in bfloat16 gives 2.1 times the error with these 64 chunks.
def test_bf16_weight_gradient_of_64_chunks_is_as_exact_as_that_of_one(generator):
    hidden = torch.randn(1024, 64, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(512, 64, generator=generator) / 8).bfloat16().requires_grad_()
    labels = torch.randint(512, (1024,), generator=generator)
    wide, wide_weight = hidden.detach().double(), weight.detach().double().requires_grad_()
    (exact,) = gradients(F.cross_entropy(wide @ wide_weight.t(), labels), [wide_weight])

    def error(**options):
        loss = fw.linear_cross_entropy(hidden, weight, labels, **options)
        assert loss.dtype == torch.float32
        (gradient,) = gradients(loss, [weight])
        assert gradient.dtype == torch.bfloat16
        return relative_error(gradient, exact)

    # 2 %: the bound of the specification; both are dominated by one rounding of the result to bfloat16.
    assert error(chunk_size=16) <= 1.02 * error(chunk_size=1024)
    assert error(chunk_size=16, accum_dtype=torch.bfloat16) > 1.5 * error(chunk_size=1024)
