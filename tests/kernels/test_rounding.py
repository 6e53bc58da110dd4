"""Stochastic rounding by the kernel has the bits of its twin."""

import pytest
import torch

pytest.importorskip("triton", minversion="3.9")  # interpreters before round a fused sum twice

from featherweight import kernels
from featherweight.errors import ShapeError
from featherweight.kernels import rounding as fused
from featherweight.optim.step.weight_update import Rounding, add_direction_
from featherweight.quant import rounding
from featherweight.quant.rounding import stochastic_round_

if not kernels.is_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1: test_interpreter.py runs this file", allow_module_level=True)

KEYS = {"seed": 3, "key": 5, "step": 7}
PLACES = [(0, 0), (1, 0), (1, 1), (7, 3), (1023, 0), (1025, 1), (5000, 2**24 - 3001), (33, 2**40 + 1)]


def both(compute):
    """Compute once with the twin and once with the kernel."""
    results = []
    for name in ("torch", "triton"):
        with kernels.use(name):
            results.append(compute())
    return results


def bits(values):
    return values.view(torch.int16)


def any_floats(count, generator):
    """Bit patterns at random: every exponent, infinities and NaN among them."""
    return torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(torch.float32)


def test_spans_are_those_of_the_twin():
    assert fused.SPAN_ELEMENTS == rounding._KEYED_ELEMENTS


@pytest.mark.parametrize("count, offset", PLACES)
def test_any_float_gets_the_bits_of_the_twin_at_any_place(count, offset, generator):
    values = any_floats(count, generator)
    twin, kernel = both(lambda: stochastic_round_(torch.empty(count).bfloat16(), values, **KEYS, offset=offset))
    assert torch.equal(bits(twin), bits(kernel))


def test_values_at_the_ends_get_the_bits_of_the_twin():
    special = [0x0, 0x80000000, 0x1, 0x8000FFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F0001, 0x7F800000, 0xFF800000]
    special += [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F80FFFF, 0x007FFFFF, 0x3F7FFFFF]
    signed = [word - (1 << 32) if word >= 1 << 31 else word for word in special]
    values = torch.tensor(signed, dtype=torch.int32).repeat(200).view(torch.float32)
    twin, kernel = both(lambda: stochastic_round_(torch.empty(values.shape).bfloat16(), values, **KEYS))
    assert torch.equal(bits(twin), bits(kernel))


def test_strides_do_not_change_the_bits(generator):
    values = torch.randn(36, 50, generator=generator)[:, ::2]
    flat = torch.randn(99, generator=generator)[::3]
    for given in (values, values.t(), flat, flat[:1].expand(40)):
        twin, kernel = both(lambda given=given: stochastic_round_(torch.empty(given.shape).bfloat16(), given, **KEYS))
        assert torch.equal(bits(twin), bits(kernel))
        out = (
            torch.empty(given.shape[::-1]).bfloat16().t()
            if given.ndim == 2
            else torch.empty(99).bfloat16()[: len(given)]
        )
        twin, kernel = both(lambda given=given, out=out: stochastic_round_(out, given, **KEYS).clone())
        assert torch.equal(bits(twin), bits(kernel))


@pytest.mark.parametrize("count, offset", PLACES)
@pytest.mark.parametrize("alpha, beta", [(-1e-3, 0.999), (0.37, 1.0), (-1.0, 0.0)])
def test_an_update_in_one_pass_has_the_bits_of_two(count, offset, alpha, beta, generator):
    weight, direction = torch.randn(count, generator=generator).bfloat16(), torch.randn(count, generator=generator)
    keys = Rounding(3, 5, 7)

    def update():
        written = weight.clone()
        add_direction_(written, direction, alpha=alpha, beta=beta, rounding=keys, offset=offset)
        return written

    twin, kernel = both(update)
    assert torch.equal(bits(twin), bits(kernel))


def test_an_update_fuses_the_product_with_the_sum_as_torch_does(generator):
    alpha, beta = -1e-3, 0.999
    weight = torch.randn(2000, generator=generator).bfloat16()
    direction = (weight.float() * beta) / -alpha  # what is left of the weight is the rounding of this quotient

    def update():
        written = weight.clone()
        add_direction_(written, direction, alpha=alpha, beta=beta, rounding=Rounding(3, 5, 7), offset=0)
        return written

    # Mutation: a product that is rounded before the sum leaves 0 or a whole unit in the last place.
    twin, kernel = both(update)
    assert torch.equal(bits(twin), bits(kernel)) and bool((twin != 0).any())


def test_an_update_that_is_not_finite_or_too_large_ends_where_the_twin_ends(generator):
    weight, direction = torch.randn(300, generator=generator).bfloat16(), any_floats(300, generator)
    weight[:100] = torch.finfo(torch.bfloat16).max

    def update():
        written = weight.clone()
        add_direction_(written, direction, alpha=2.0, beta=1.5, rounding=Rounding(3, 5, 7), offset=0)
        return written

    # IEEE 754 leaves the sign and payload of a new NaN open.
    twin, kernel = both(update)
    assert torch.equal(twin.isnan(), kernel.isnan()) and bool(twin.isnan().any())
    assert torch.equal(twin.nan_to_num(nan=0.5, posinf=7.0), kernel.nan_to_num(nan=0.5, posinf=7.0))


@pytest.mark.parametrize("dtype, is_stochastic", [(torch.float16, True), (torch.bfloat16, False)])
def test_a_weight_that_is_rounded_to_nearest_is_left_to_torch(dtype, is_stochastic, generator):
    weight, direction = torch.randn(500, generator=generator).to(dtype), torch.randn(500, generator=generator)

    def update():
        written = weight.clone()
        keys = Rounding(3, 5, 7, stochastic=is_stochastic)
        add_direction_(written, direction, alpha=-0.01, beta=0.9, rounding=keys, offset=0)
        return written

    twin, kernel = both(update)
    assert torch.equal(twin, kernel)


def test_autograd_sees_that_a_kernel_has_written():
    weight = torch.ones(8, dtype=torch.bfloat16)
    leaf = torch.ones(8, dtype=torch.bfloat16, requires_grad=True)
    product = (weight * leaf).sum()
    with kernels.use("triton"):
        stochastic_round_(weight, torch.full((8,), 3.0), **KEYS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("source", [torch.zeros(5), torch.zeros(6).double(), torch.zeros(6).bfloat16()])
def test_tensors_of_another_size_or_type_are_refused_before_the_kernel(source):
    with pytest.raises(ShapeError, match="source"):
        fused.stochastic_round_(torch.zeros(6).bfloat16(), source, offset=0, key_pair=lambda span: (1, 2))
    with pytest.raises(ShapeError, match="out"):
        fused.stochastic_round_(torch.zeros(6), torch.zeros(6), offset=0, key_pair=lambda span: (1, 2))
