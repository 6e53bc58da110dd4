"""Updates of int8 weights by the kernel have the codes and scales of their twin, whatever happens to a group."""

import pytest
import torch

pytest.importorskip("triton", minversion="3.9")  # interpreters before round a fused sum twice

from featherweight import kernels
from featherweight.errors import NumericsError, ShapeError
from featherweight.kernels import int8_update as fused
from featherweight.quant.int8_update import add_to_int8_
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.rounding import uniform

if not kernels.is_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1: test_interpreter.py runs this file", allow_module_level=True)

SHAPES = [(1, 1), (7, 5), (40, 300), (3, 1024), (11, 257), (2, 4099)]


def copy_of(weight):
    return Int8Weight(weight.codes.clone(), weight.block_scale.clone(), weight.group_size)


def compare(weight, update, **options):
    """Update copies by twin and kernel, compare all bits, and return what came out."""
    results = []
    for name in ("torch", "triton"):
        written = copy_of(weight)
        with kernels.use(name):
            add_to_int8_(written, update, **{"seed": 1, "key": 2, "step": 3, **options})
        results.append(written)
    twin, kernel = results
    assert torch.equal(twin.codes, kernel.codes)
    assert torch.equal(twin.block_scale.isnan(), kernel.block_scale.isnan())
    assert torch.equal(twin.block_scale.nan_to_num(-1.0), kernel.block_scale.nan_to_num(-1.0))
    return kernel


def drawn(shape, group_size, generator):
    """A weight whose groups differ in size by many orders, and the scale of each element."""
    exponents = torch.randn(shape[0], 1, generator=generator)
    weight = Int8Weight.quantize(torch.randn(shape, generator=generator) * 0.02 * 10**exponents, group_size)
    scale = weight.block_scale.repeat_interleave(group_size, 1)[:, : shape[1]]
    return weight, scale


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [256, 64, 300])
@pytest.mark.parametrize("size", [1e-3, 0.3, 3.0, 30.0])
def test_codes_and_scales_are_those_of_the_twin(shape, group_size, size, generator):
    weight, scale = drawn(shape, group_size, generator)
    update = torch.randn(shape, generator=generator) * size * scale
    for beta in (1.0, 0.99):
        for stochastic in (True, False):
            compare(weight, update, beta=beta, stochastic=stochastic, offset=5)


@pytest.mark.parametrize("group_size", [1, 5, 100, 4096, 5000])
def test_every_size_of_a_group_is_served(group_size, generator):
    weight, scale = drawn((2, 60 if group_size < 10 else 5001), group_size, generator)
    compare(weight, torch.randn(weight.shape, generator=generator) * scale, beta=0.999)


@pytest.mark.parametrize("offset", [2**24 - 700, 2**24 - 1, 2**24, 2**40 + 3])
def test_a_span_of_keys_may_end_inside_a_group(offset, generator):
    weight, scale = drawn((5, 300), 256, generator)
    compare(weight, torch.randn(weight.shape, generator=generator) * scale, offset=offset)


def test_the_first_element_of_a_span_has_the_keys_of_its_span():
    weight = Int8Weight(torch.full((1, 40), 100, dtype=torch.int8), torch.ones(1, 1), 256)
    for distance in range(1, 20):  # each shows a wrong key with a probability of one half
        compare(weight, torch.full((1, 40), 0.5), offset=2**24 - distance)


def test_a_fraction_that_equals_its_random_number_becomes_a_code():
    weight = Int8Weight(torch.full((1, 200), 100, dtype=torch.int8), torch.ones(1, 1), 256)
    written = compare(weight, uniform(1, 2, 3, 0, 200).view(1, 200))
    assert written.codes.unique().tolist() == [101]


def test_groups_that_grow_grow_to_the_same_scale(generator):
    weight, scale = drawn((64, 512), 256, generator)
    weight.codes[:, ::7] = 127
    update = torch.randn(weight.shape, generator=generator) * scale
    update[::2] = update[::2].div(scale[::2]).round_().mul_(scale[::2])  # whole codes, to the very end of the range
    grown = compare(weight, update).block_scale > weight.block_scale
    assert float(grown.double().mean()) > 0.5


def test_sums_that_only_rounding_takes_to_the_end_of_the_range_do_what_the_twin_does(generator):
    codes = torch.randint(-127, 128, (64, 256), generator=generator).to(torch.int8)
    codes[:, 0] = 127
    weight = Int8Weight(codes, torch.full((64, 1), 2.0**-10), 256)
    update = torch.zeros(64, 256)
    update[::2, 0], update[1::2, 0] = 1e-7 * 2.0**-10, -1e-7 * 2.0**-10
    grown = compare(weight, update).block_scale[:, 0] > weight.block_scale[:, 0]
    assert grown.tolist() == [True, False] * 32


@pytest.mark.parametrize("code, update, expected", [(101, "0x1.80a3d8p+2", [106, 107]), (122, "0x1.8e147cp+2", [127])])
def test_an_update_fuses_the_product_with_the_sum_as_torch_does(code, update, expected):
    # code * (0.99 - 1) + update is 5 and a fraction of 5e-7, but just 5 if not fused. One of a million random numbers
    # is so small that the fraction becomes a code, in group 1021; at the end of the range that code is cut.
    weight = Int8Weight(torch.full((4, 256), code, dtype=torch.int8), torch.ones(4, 1), 256)
    update = torch.full((4, 256), float.fromhex(update))
    written = compare(weight, update, beta=0.99, seed=0, key=0, step=0, offset=1020 * 256)
    assert written.codes.unique().tolist() == expected


@pytest.mark.parametrize("stochastic", [True, False])
def test_groups_that_fall_to_half_of_their_range_are_doubled_alike(stochastic, generator):
    weight, scale = drawn((64, 300), 256, generator)
    weight.codes.div_(3, rounding_mode="trunc")
    update = torch.randn(weight.shape, generator=generator) * scale
    update[::4] = 0  # what has not moved is not doubled
    halved = compare(weight, update, stochastic=stochastic).block_scale < weight.block_scale
    assert not bool(halved[::4].any()) and float(halved.double().mean()) > 0.5
    weight.block_scale.fill_(2.0**-100)  # the smallest scale stays
    compare(weight, update / scale * 2.0**-100)


@pytest.mark.parametrize("code, doubles", [(61, True), (62, False)])
def test_half_of_the_range_ends_at_the_code_where_the_twin_ends_it(code, doubles):
    weight = Int8Weight(torch.full((1, 256), code, dtype=torch.int8), torch.ones(1, 1), 256)
    assert compare(weight, torch.ones(1, 256)).block_scale.tolist() == [[0.5 if doubles else 1.0]]


def test_groups_of_zeros_take_the_same_first_scale(generator):
    weight = Int8Weight.quantize(torch.zeros(8, 300))
    compare(weight, torch.zeros(8, 300))
    for size in (1e-5, 1.0, 1e-36):
        assert bool((compare(weight, torch.randn(8, 300, generator=generator) * size).block_scale > 0).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_updates_that_are_not_finite_or_overflow_end_alike(bad, generator):
    weight, scale = drawn((4, 600), 256, generator)
    update = torch.randn(weight.shape, generator=generator) * scale
    update[1, 300] = update[2, 599] = bad
    weight.block_scale[3, 0] = float("nan")
    compare(weight, update, beta=0.99)


def test_rows_are_updated_in_place_and_nothing_beside_them(generator):
    weight, scale = drawn((9, 300), 256, generator)
    update = torch.randn(9, 300, generator=generator) * scale
    whole, part = copy_of(weight), copy_of(weight)
    with kernels.use("triton"):
        add_to_int8_(whole, update, seed=1, key=2, step=3)
        add_to_int8_(part.rows(3, 6), update[3:6], seed=1, key=2, step=3, offset=3 * 300)
    assert torch.equal(part.codes[3:6], whole.codes[3:6])
    rest = [0, 1, 2, 6, 7, 8]
    assert torch.equal(part.codes[rest], weight.codes[rest])
    assert torch.equal(part.block_scale[rest], weight.block_scale[rest])


def test_a_write_between_forward_and_backward_is_noticed(generator):
    weight = Int8Weight.quantize(torch.randn(4, 256, generator=generator))
    version = weight.version
    with kernels.use("triton"):
        add_to_int8_(weight, torch.ones(4, 256), seed=1, key=2, step=3)
    with pytest.raises(NumericsError, match="was changed"):
        weight.require_version(version)


@pytest.mark.parametrize("wrong", ["codes", "block_scale", "update"])
def test_tensors_of_another_size_are_refused_before_the_kernel(wrong):
    sizes = {
        "codes": torch.zeros(3, 40, dtype=torch.int8),
        "block_scale": torch.ones(3, 2),
        "update": torch.ones(3, 40),
    }
    sizes[wrong] = sizes[wrong][:2]
    with pytest.raises(ShapeError, match="does not fit"):
        fused.add_(*sizes.values(), group_size=32, beta=1.0, offset=0, key_pair=None)
