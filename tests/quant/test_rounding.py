import pytest
import torch

from featherweight.errors import ConfigError, ShapeError
from featherweight.quant import rounding
from featherweight.quant.rounding import hash_bits, stochastic_round_

KEYS = {"seed": 3, "key": 5, "step": 7}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rounded(values, **keys):
    return stochastic_round_(torch.empty(values.shape, dtype=torch.bfloat16), values, **(KEYS | keys))


def from_bits(*patterns):
    signed = [pattern - (1 << 32) if pattern >= 1 << 31 else pattern for pattern in patterns]
    return torch.tensor(signed, dtype=torch.int32).view(torch.float32)


def reference_bits(seed, key, step, index):
    """The hash of one element in Python integers."""
    first, second = (word % 2**32 for word in rounding._key_pair(seed, key, step, index // 2**24))
    word = (index % 2**24 // 2) ^ first
    word ^= word >> 16
    word = word * 0x7FEB352D % 2**32
    word ^= word >> 15
    word ^= second
    word = word * 0x846CA68B % 2**32
    word ^= word >> 16
    return word >> 16 if index % 2 else word & 0xFFFF


def test_bits_equal_the_hash_in_plain_integers_also_across_keyed_spans():
    for offset in (0, 1, 65534, 2**24 - 3, 2**40 + 1):
        expected = [reference_bits(3, 5, 7, offset + i) for i in range(8)]
        assert hash_bits(3, 5, 7, offset, 8).tolist() == expected


def test_bits_do_not_change_between_versions():
    # A saved run resumes with the same bits only if these stay.
    assert hash_bits(0, 1, 2, 0, 4).tolist() == [51319, 5138, 47293, 10738]


@pytest.mark.parametrize("step", [1, 2, 7, 1000, 65536, 70001])
def test_any_tiling_gives_the_same_bits(step):
    values = randn(140_003)
    whole = rounded(values, offset=11)
    pieces = [rounded(values[i : i + step], offset=11 + i) for i in range(0, 4 * step, step) if i < len(values)]
    joined = torch.cat(pieces)
    assert torch.equal(whole[: len(joined)].view(torch.int16), joined.view(torch.int16))


def test_strides_and_shapes_do_not_change_the_bits():
    values = randn(36, 25)
    flat = rounded(values.reshape(-1))
    assert torch.equal(rounded(values).view(-1), flat)
    out = torch.empty(25, 36, dtype=torch.bfloat16).t()
    assert stochastic_round_(out, values, **KEYS) is out
    assert torch.equal(out.reshape(-1), flat)
    transposed = values.t().contiguous().t()
    assert torch.equal(rounded(transposed).reshape(-1), flat)


def test_every_value_goes_to_one_of_its_two_neighbours():
    values = torch.cat([randn(5000) * 10.0**exponent for exponent in (-40, -38, -20, 0, 30)])
    raw = values.view(torch.int32)
    toward_zero = (raw & ~0xFFFF).view(torch.float32)
    away = ((raw & ~0xFFFF) + 0x10000).view(torch.float32)
    result = rounded(values).float()
    assert bool(((result == toward_zero) | (result == away)).all())
    assert bool((result != toward_zero).any()) and bool((result != away).any())


def test_values_that_bf16_holds_exactly_do_not_change():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()]
    for step in range(3):
        assert torch.equal(rounded(finite.float(), step=step).view(torch.int16), finite.view(torch.int16))


def test_infinities_and_every_nan_survive():
    values = from_bits(0x7F800000, 0xFF800000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F80FFFF)
    for step in range(20):  # many bits, so that a carry out of a NaN would be seen
        result = rounded(values, step=step)
        assert result[0] == torch.inf and result[1] == -torch.inf
        assert bool(result[2:].isnan().all())


def test_a_finite_value_never_becomes_infinite():
    largest = float(torch.finfo(torch.bfloat16).max)
    values = torch.cat([torch.full((500,), torch.finfo(torch.float32).max), torch.full((500,), largest * 1.0001)])
    values = torch.cat([values, -values])
    assert torch.equal(rounded(values).float(), torch.where(values > 0, largest, -largest))


@pytest.mark.parametrize("value", [1.001, -1.001, 0.3, 3.14159, -2.5e-7, 1e-39, 1234.567])
def test_the_mean_of_many_draws_is_the_value(value):
    count = 100_000
    values = torch.full((count,), value)
    spacing = float((values[:1].view(torch.int32) & ~0xFFFF).view(torch.float32))
    above = float(((values[:1].view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32))
    gap = abs(above - spacing)
    fraction = abs(float(values[0]) - spacing) / gap
    error = float(rounded(values).double().mean()) - float(values[0])
    # Bernoulli draws: four standard errors. Mutation: rounding to nearest is off by up to half a gap, 300 of them.
    assert abs(error) <= 4 * gap * (fraction * (1 - fraction) / count) ** 0.5


def test_small_updates_accumulate_where_rounding_to_nearest_loses_them():
    weight = torch.ones(4096, dtype=torch.bfloat16)
    nearest = weight.clone()
    for step in range(100):
        stochastic_round_(weight, weight.float() + 2e-4, seed=0, key=0, step=step)
        nearest += 2e-4
    assert torch.equal(nearest, torch.ones_like(nearest))
    # 100 steps add 0.02; each draw has a standard deviation below half a gap of 2**-7; 4096 x 100 draws, four errors.
    assert float(weight.float().mean()) == pytest.approx(1.02, abs=4 * 2**-8 * (100 / 4096) ** 0.5)


@pytest.mark.parametrize(
    "other", [{"seed": 4}, {"key": 6}, {"step": 8}, {"offset": 1}, {"offset": 2}, {"offset": 2**24}]
)
def test_bits_of_other_keys_and_of_neighbours_are_uncorrelated(other):
    count = 1 << 18
    first = hash_bits(3, 5, 7, 0, count).double()
    keys = {"seed": 3, "key": 5, "step": 7, "offset": 0} | other
    second = hash_bits(**keys, count=count).double()
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    # For independent numbers the standard error is 1 / sqrt(count) = 0.002; four of them.
    assert abs(correlation) < 4 / count**0.5


def test_bits_are_uniform():
    count = 1 << 18
    bits = hash_bits(3, 5, 7, 0, count)
    histogram = torch.bincount(bits >> 8, minlength=256).double()
    expected = count / 256
    chi_square = float(((histogram - expected) ** 2 / expected).sum())
    # 255 degrees of freedom: mean 255, standard deviation 22.6; four of them on both sides.
    assert abs(chi_square - 255) < 4 * 22.6
    for bit in range(16):
        ones = int(((bits >> bit) & 1).sum())
        assert abs(ones - count / 2) < 4 * (count / 4) ** 0.5
    assert int(bits.min()) >= 0 and int(bits.max()) <= 65535


def test_nothing_happens_for_nothing():
    assert rounded(torch.empty(0)).shape == (0,)
    assert hash_bits(0, 0, 0, 5, 0).shape == (0,)
    assert rounded(torch.tensor(1.0)).shape == ()


def test_misfits_are_refused():
    with pytest.raises(ShapeError, match=r"values=\(3,\) do not fit out=\(4,\)"):
        stochastic_round_(torch.empty(4, dtype=torch.bfloat16), torch.ones(3), **KEYS)
    with pytest.raises(ConfigError, match="out=torch.float16, values=torch.float32"):
        stochastic_round_(torch.empty(4, dtype=torch.float16), torch.ones(4), **KEYS)
    with pytest.raises(ConfigError, match="out=torch.bfloat16, values=torch.float64"):
        stochastic_round_(torch.empty(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.float64), **KEYS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bits():
    values = randn(300_001)
    keys = {"seed": 1, "key": 2, "step": 3, "offset": 2**24 - 1000}
    on_gpu = stochastic_round_(torch.empty(300_001, dtype=torch.bfloat16, device="cuda"), values.cuda(), **keys)
    assert torch.equal(on_gpu.cpu().view(torch.int16), rounded(values, **keys).view(torch.int16))


@pytest.mark.parametrize("special", [None, float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 3.3895e38])
def test_the_short_way_of_a_cpu_and_the_way_of_a_gpu_give_the_same_bits(monkeypatch, special):
    # Mutation: the short way for a NaN, an infinity or what would round up to one.
    values = torch.cat([randn(1000), from_bits(1, 0x80000001, 0x7F7F0000, 0xFF7F0000, 0x007FFFFF)])
    if special is not None:
        values[::7] = special
    short = rounded(values)
    monkeypatch.setattr(rounding, "device_kind", lambda device: "cuda")
    assert torch.equal(short.view(torch.int16), rounded(values).view(torch.int16))
