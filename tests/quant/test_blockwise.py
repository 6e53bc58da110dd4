import math

import pytest
import torch

from featherweight.errors import ConfigError, NumericsError, ShapeError
from featherweight.quant import blockwise
from featherweight.quant.blockwise import (
    dequantize_blockwise,
    dequantize_uniform,
    dynamic_table,
    dynamic_values,
    pack_int4,
    quantize_blockwise,
    quantize_uniform,
    require_finite,
    unpack_int4,
)

TABLES = [(8, True), (8, False), (4, True), (4, False)]
NUMELS = [1, 2, 5, 255, 256, 257, 1000, 65536, 65536 + 129]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def states(numel, signed, seed=0):
    """Numbers as moments have them: many sizes, within one block too."""
    values = randn(numel, seed=seed) * 10.0 ** (2 * randn(numel, seed=seed + 1))
    return values if signed else values.abs()


def round_trip(values, table, block_size):
    codes, block_scale = quantize_blockwise(values, table, block_size)
    return dequantize_blockwise(codes, block_scale, table, block_size, values.shape)


# ---- tables ----


@pytest.mark.parametrize(("bits", "signed"), TABLES)
def test_a_table_has_all_its_entries_strictly_increasing_up_to_1(bits, signed):
    values = dynamic_table(bits, signed=signed).values
    assert values.shape == (2**bits,)
    assert bool((values[1:] > values[:-1]).all())
    assert float(values[-1]) == 1.0


def test_the_8_bit_tables_are_those_of_the_paper():
    signed, unsigned = dynamic_values(8, signed=True).tolist(), dynamic_values(8, signed=False).tolist()
    assert 0.0 in signed and 0.0 in unsigned
    assert -1.0 not in signed
    # Written out from the construction: 64 or 128 midpoints of [0.1, 1], and one (two) in the lowest decade.
    assert signed[0] == pytest.approx(-(1 - 0.9 / 128), rel=1e-12)
    assert signed[-2] == pytest.approx(1 - 0.9 / 128, rel=1e-12)
    assert signed[128] == pytest.approx(0.55e-6, rel=1e-12)
    assert [-value for value in signed[126::-1]] == signed[128:-1]
    assert unsigned[-2] == pytest.approx(1 - 0.9 / 256, rel=1e-12)
    assert unsigned[1:3] == pytest.approx([0.325e-6, 0.775e-6], rel=1e-12)
    assert sum(0.1 < value < 1 for value in unsigned) == 128 and sum(0.1 < value < 1 for value in signed) == 64


def test_the_4_bit_tables_are_the_same_construction_with_three_decades():
    positive = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    assert dynamic_values(4, signed=True).tolist() == pytest.approx(
        [-v for v in positive[::-1]] + [0.0] + positive + [1]
    )
    unsigned = dynamic_values(4, signed=False).tolist()
    assert unsigned[:3] == pytest.approx([0.001, 0.00325, 0.00775])
    assert all(value > 0 for value in unsigned)


@pytest.mark.parametrize("bits", [16, 2, 0])
def test_other_widths_are_refused(bits):
    with pytest.raises(ConfigError, match=f"bits={bits} has no code; expected 8 or 4"):
        dynamic_table(bits, signed=True)
    with pytest.raises(ConfigError, match=f"bits={bits} has no code"):
        quantize_uniform(torch.ones(3), bits)


# ---- dynamic codes ----


@pytest.mark.parametrize(("bits", "signed"), TABLES)
def test_every_element_takes_the_nearest_entry(bits, signed):
    table = dynamic_table(bits, signed=signed)
    middle = ((table.values[1:].double() + table.values[:-1].double()) / 2).float()
    # Around every decision, on both sides of it, and everywhere else.
    near = torch.cat([middle, torch.nextafter(middle, torch.tensor(9.0)), torch.nextafter(middle, torch.tensor(-9.0))])
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tiny = uniform * 10.0 ** (-8 * torch.rand(20_000, generator=torch.Generator().manual_seed(1)))
    values = torch.cat([torch.ones(1), near, uniform, tiny, torch.zeros(1), table.values])
    values = (values if signed else values.abs()).clamp(-1, 1)
    # One block whose largest magnitude is 1: the quantised number is the table entry itself.
    result = round_trip(values, table, values.numel() + values.numel() % 2)
    distance = (values[:, None].double() - table.values.double()).abs()
    # Exactly nearest: in double precision all these differences are exact.
    assert torch.equal((values.double() - result.double()).abs(), distance.amin(dim=1))


@pytest.mark.parametrize(("bits", "signed"), TABLES)
@pytest.mark.parametrize("numel", NUMELS)
def test_the_error_in_each_block_is_at_most_half_the_widest_gap(bits, signed, numel):
    table, block_size = dynamic_table(bits, signed=signed), 256 if bits == 8 else 128
    values = states(numel, signed)
    error = (round_trip(values, table, block_size) - values).abs().double()
    # Also for numbers outside the table: from its ends to -1 and to 0 it is at most half of the widest gap.
    half_gap = float(table.values.double().diff().max()) / 2
    for start in range(0, numel, block_size):
        largest = float(values[start : start + block_size].abs().max())
        # Rounding of the division and of the product in float32 adds 2**-23.
        assert float(error[start : start + block_size].max()) <= largest * (half_gap + 2**-23)


@pytest.mark.parametrize(("bits", "signed"), TABLES)
@pytest.mark.parametrize("numel", NUMELS)
def test_codes_and_scales_hold_exactly_what_is_needed(bits, signed, numel):
    block_size = 256 if bits == 8 else 128
    codes, block_scale = quantize_blockwise(states(numel, signed), dynamic_table(bits, signed=signed), block_size)
    assert codes.dtype == torch.uint8 and block_scale.dtype == torch.float32
    assert codes.numel() == (numel if bits == 8 else math.ceil(numel / 2))
    assert block_scale.numel() == math.ceil(numel / block_size)


@pytest.mark.parametrize(("bits", "signed"), TABLES)
def test_quantising_again_changes_no_code(bits, signed):
    table = dynamic_table(bits, signed=signed)
    codes, block_scale = quantize_blockwise(states(5001, signed), table, 128)
    values = dequantize_blockwise(codes, block_scale, table, 128, (5001,))
    again, scale_again = quantize_blockwise(values, table, 128)
    # Only where a block's largest magnitude is positive does it have the entry 1, so that its scale is reproduced.
    keeps_scale = block_scale == scale_again
    assert bool(keeps_scale.any()) and (signed or bool(keeps_scale.all()))
    same = (dequantize_blockwise(again, scale_again, table, 128, (5001,)) == values)[: 39 * 128].view(39, 128)
    assert bool(same[keeps_scale[:39]].all())


@pytest.mark.parametrize(("bits", "signed"), TABLES)
def test_blocks_do_not_disturb_each_other(bits, signed):
    table = dynamic_table(bits, signed=signed)
    values = states(128 * 700 + 5, signed)  # more than one tile
    whole = round_trip(values, table, 128)
    changed = values.clone()
    changed[128:256] *= 1000
    assert torch.equal(round_trip(changed, table, 128)[256:], whole[256:])
    for start in (0, 128, 65536, 128 * 700):
        assert torch.equal(round_trip(values[start : start + 128], table, 128), whole[start : start + 128])


@pytest.mark.parametrize(("bits", "signed"), TABLES)
def test_a_block_of_zeros_reads_as_zeros_between_others(bits, signed):
    values = torch.ones(3 * 128 - 7)
    values[128:256] = 0
    table = dynamic_table(bits, signed=signed)
    codes, block_scale = quantize_blockwise(values, table, 128)
    assert float(block_scale[1]) == 0.0
    assert torch.equal(dequantize_blockwise(codes, block_scale, table, 128, values.shape), values)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize(("bits", "signed"), TABLES)
def test_extreme_scales_keep_the_error_bound(bits, signed, scale):
    table = dynamic_table(bits, signed=signed)
    unit = torch.linspace(-1 if signed else 0, 1, 128)
    result = round_trip(unit * scale, table, 128)
    half_gap = float(table.values.double().diff().max()) / 2
    # Subnormal numbers have a spacing of 1.4e-45, of which both the input and the result may be off by half.
    bound = half_gap * scale * (1 + 1e-6) + 1.4e-45
    assert float((result.double() - (unit * scale).double()).abs().max()) <= bound


@pytest.mark.parametrize("bits", [8, 4])
def test_a_positive_second_moment_stays_positive(bits):
    table = dynamic_table(bits, signed=False, positive_stays_positive=True)
    values = torch.cat([torch.tensor([1.0, 0.0]), 10.0 ** -torch.arange(1.0, 38.0), torch.tensor([1e-45])])
    result = round_trip(values, table, 256)
    assert bool((result[2:] > 0).all())
    smallest = float(table.values[table.values > 0].min())
    # Below the smallest entry everything reads as the smallest entry, never more: one step gets shorter, none longer.
    assert bool((result[values < smallest] <= smallest).all())
    plain = round_trip(values, dynamic_table(8, signed=False), 256)
    assert float(plain[-1]) == 0.0  # what the option is for
    if bits == 8:
        assert float(result[1]) == 0.0  # a true zero stays zero


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("bits", "signed"), TABLES)
def test_a_non_finite_value_stays_visible_in_its_block_and_only_there(bits, signed, bad):
    values = torch.ones(3 * 128)
    values[130] = bad
    result = round_trip(values, dynamic_table(bits, signed=signed), 128)
    assert not bool(result[128:256].isfinite().any())
    assert torch.equal(result[:128], values[:128]) and torch.equal(result[256:], values[256:])
    with pytest.raises(NumericsError, match=r"moments: values=\(384,\) holds 1 non-finite elements of 384"):
        require_finite(values, "moments")
    require_finite(result[:128], "moments")


def test_shape_strides_and_type_of_the_input_do_not_matter():
    table, values = dynamic_table(8, signed=True), randn(6, 50)
    codes, block_scale = quantize_blockwise(values.reshape(-1), table, 256)
    for same in (values, values.t().contiguous().t(), values.double(), values.requires_grad_()):
        each_codes, each_scale = quantize_blockwise(same, table, 256)
        assert torch.equal(each_codes, codes) and torch.equal(each_scale, block_scale)
    assert dequantize_blockwise(codes, block_scale, table, 256, (6, 50)).shape == (6, 50)


def test_out_is_written_in_place():
    table, values = dynamic_table(4, signed=True), randn(301)
    out = torch.zeros(151, dtype=torch.uint8), torch.zeros(3)
    result = quantize_blockwise(values, table, 128, out=out)
    assert result[0] is out[0] and result[1] is out[1]
    expected = quantize_blockwise(values, table, 128)
    assert torch.equal(out[0], expected[0]) and torch.equal(out[1], expected[1])


@pytest.mark.parametrize("block_size", [0, 1, 127, -2])
def test_odd_block_sizes_are_refused(block_size):
    with pytest.raises(ConfigError, match=f"block_size={block_size} cannot hold whole bytes"):
        quantize_blockwise(torch.ones(5), dynamic_table(8, signed=True), block_size)


def test_codes_of_another_shape_are_refused():
    table = dynamic_table(8, signed=True)
    codes, block_scale = quantize_blockwise(torch.ones(300), table, 256)
    with pytest.raises(ShapeError, match=r"do not fit shape=\(301,\); expected 301 bytes and 2 scales"):
        dequantize_blockwise(codes, block_scale, table, 256, (301,))
    with pytest.raises(ShapeError, match=r"do not fit shape=\(300,\); expected 300 bytes and 3 scales"):
        dequantize_uniform(codes, block_scale, block_scale, 8, 128, (300,))


def test_the_lookup_and_a_plain_search_give_the_same_codes_for_every_upper_half():
    for bits, signed in TABLES:
        for positive in (False, True):
            table = dynamic_table(bits, signed=signed, positive_stays_positive=positive)
            upper = torch.arange(1 << 16, dtype=torch.int64)
            for lower in (0, 1, 0x7FFF, 0xFFFF):
                pattern = (upper << 16) | lower
                values = torch.where(pattern >= 1 << 31, pattern - (1 << 32), pattern).int().view(torch.float32)
                inside = values.abs() <= 1
                found = table.first_code.int() + (values > table.next_boundary).int()
                expected = torch.bucketize(values, table.boundaries)
                assert torch.equal(found[inside].long(), expected[inside])


# ---- uniform codes ----


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("numel", NUMELS)
def test_uniform_codes_are_within_half_a_step(bits, numel):
    values = randn(numel, seed=1)
    codes, block_scale, zero_point = quantize_uniform(values, bits)
    assert zero_point.dtype == torch.uint8 and zero_point.numel() == block_scale.numel() == math.ceil(numel / 256)
    assert codes.numel() == (numel if bits == 8 else math.ceil(numel / 2))
    result = dequantize_uniform(codes, block_scale, zero_point, bits, 256, (numel,))
    steps = block_scale.repeat_interleave(256)[:numel]
    # Half a step, and float32 rounding of the quotient (up to 255 steps, so 255 * 2**-24).
    assert bool(((result - values).abs() <= steps * (0.5 + 2e-5)).all())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "values",
    [torch.full((256,), 0.01), torch.full((256,), -3.0), torch.linspace(0.5, 1, 256), torch.linspace(-2, -1, 256)],
    ids=["constant", "negative constant", "positive only", "negative only"],
)
def test_blocks_of_one_sign_do_not_saturate(bits, values):
    # Mutation: without extending the range to 0 the zero point is clamped and 0.01 reads as 1e-5.
    codes, block_scale, zero_point = quantize_uniform(values, bits)
    result = dequantize_uniform(codes, block_scale, zero_point, bits, 256, values.shape)
    assert float((result - values).abs().max()) <= float(block_scale[0]) * (0.5 + 2e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_zero_is_exact_in_uniform_codes(bits):
    values = randn(1024)
    values[::3] = 0
    codes, block_scale, zero_point = quantize_uniform(values, bits)
    assert bool((dequantize_uniform(codes, block_scale, zero_point, bits, 256, (1024,))[::3] == 0).all())
    zeros = quantize_uniform(torch.zeros(300), bits)
    assert bool((dequantize_uniform(*zeros, bits, 256, (300,)) == 0).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_quantising_uniform_codes_again_changes_none(bits):
    codes, block_scale, zero_point = quantize_uniform(randn(4096, seed=2), bits)
    values = dequantize_uniform(codes, block_scale, zero_point, bits, 256, (4096,))
    again = quantize_uniform(values, bits)
    assert torch.equal(again[0], codes) and torch.equal(again[2], zero_point)
    torch.testing.assert_close(again[1], block_scale, rtol=3e-7, atol=0)  # a few float32 roundings


@pytest.mark.parametrize(("bits", "error", "tolerance"), [(4, 0.109, 0.003), (8, 0.0064, 0.0002)])
def test_a_random_orthonormal_basis_has_the_known_relative_error(bits, error, tolerance):
    basis = torch.linalg.qr(randn(1024, 256, seed=3)).Q
    codes, block_scale, zero_point = quantize_uniform(basis, bits)
    result = dequantize_uniform(codes, block_scale, zero_point, bits, 256, basis.shape)
    # Steps of the range of 256 Gaussian numbers (5.6 deviations) over 15 or 255, error a step over sqrt(12).
    assert float((result - basis).norm() / basis.norm()) == pytest.approx(error, abs=tolerance)
    parts = (codes, block_scale, zero_point)
    assert sum(part.nbytes for part in parts) == basis.numel() * bits // 8 + basis.numel() // 256 * 5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_value_stays_visible_in_uniform_codes(bad):
    values = torch.ones(600)
    values[300] = bad
    result = dequantize_uniform(*quantize_uniform(values, 8), 8, 256, (600,))
    assert not bool(result[256:512].isfinite().any())
    assert torch.equal(result[:256], values[:256])


@pytest.mark.parametrize("numel", [0, 1, 2, 7, 16, 255])
def test_packing_is_exact_for_every_length(numel):
    codes = torch.randint(0, 16, (numel,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack_int4(codes)
    assert packed.dtype == torch.uint8 and packed.numel() == math.ceil(numel / 2)
    assert torch.equal(unpack_int4(packed, numel), codes)


def test_packing_puts_the_even_element_low():
    assert pack_int4(torch.tensor([1, 2, 15], dtype=torch.uint8)).tolist() == [0x21, 0x0F]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack_int4(unpack_int4(every, 512)), every)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("bits", "signed"), TABLES)
def test_a_gpu_gives_the_same_codes(bits, signed):
    values, table = states(100_001, signed), dynamic_table(bits, signed=signed)
    on_cpu, on_gpu = quantize_blockwise(values, table, 128), quantize_blockwise(values.cuda(), table, 128)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(on_cpu, on_gpu, strict=True))
    assert torch.equal(dequantize_blockwise(*on_gpu, table, 128, (100_001,)).cpu(), round_trip(values, table, 128))


def test_tiles_hold_whole_blocks_for_any_block_size(monkeypatch):
    monkeypatch.setattr(blockwise, "_TILE_ELEMENTS_CPU", 100)
    table, values = dynamic_table(4, signed=True), randn(1001)
    for block_size in (2, 6, 64, 128, 2000):
        tiled = quantize_blockwise(values, table, block_size)
        scales = [values[i : i + block_size].abs().max() for i in range(0, 1001, block_size)]
        assert torch.equal(tiled[1], torch.stack(scales))
