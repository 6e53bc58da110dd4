"""Updates of int8 weights: exact where nothing changes, right in the mean where something does."""

import pytest
import torch

from featherweight.errors import ShapeError
from featherweight.quant.int8_update import add_to_int8_
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.rounding import uniform

DRAWS = 100_000


def scale_of(weight):
    return weight.block_scale.repeat_interleave(weight.group_size, dim=1)[:, : weight.shape[1]]


def copy_of(weight):
    return Int8Weight(weight.codes.clone(), weight.block_scale.clone(), weight.group_size)


def equal(a, b):
    return torch.equal(a.codes, b.codes) and torch.equal(a.block_scale, b.block_scale)


def made(codes, scale=2.0**-10, group_size=256):
    """A weight with these codes."""
    codes = torch.as_tensor(codes, dtype=torch.int8)
    return Int8Weight(codes, torch.full((len(codes), -(-codes.shape[1] // group_size)), scale), group_size)


@pytest.mark.parametrize(
    ("shape", "stochastic", "steps"),
    [
        ((1, 1), True, 1000),
        ((7, 5), False, 1000),
        ((40, 300), True, 200),
        ((3, 1024), False, 200),
        pytest.param((40, 300), True, 1000, marks=pytest.mark.slow),
        pytest.param((40, 300), False, 1000, marks=pytest.mark.slow),
        pytest.param((3, 1024), True, 1000, marks=pytest.mark.slow),
    ],
)
def test_a_zero_update_leaves_all_codes_unchanged(shape, stochastic, steps, generator):
    weight = Int8Weight.quantize(torch.randn(shape, generator=generator) * 0.02)
    weight.codes[0, 0] = 127  # the ends of the range, too
    weight.codes[-1, -1] = -127
    before, nothing = copy_of(weight), torch.zeros(shape)
    for step in range(steps):
        add_to_int8_(weight, nothing, seed=3, key=5, step=step, stochastic=stochastic)
    assert equal(weight, before)


@pytest.mark.parametrize("x", [0.3, -0.3, 0.004, -1.7, 2.5, 1e-4, 0.999])
def test_the_mean_over_1e5_draws_is_the_update_within_four_standard_errors(x):
    weight = made(torch.zeros(1, DRAWS), group_size=DRAWS)
    weight.codes[0, 0] = 100  # keeps the group from doubling
    add_to_int8_(weight, torch.full((1, DRAWS), x * 2.0**-10), seed=0, key=1, step=2)
    moved = weight.codes[0, 1:].double()
    fraction = abs(x) % 1
    error = (fraction * (1 - fraction) / (DRAWS - 1)) ** 0.5
    assert abs(float(moved.mean()) - x) <= 4 * error
    assert set(moved.unique().tolist()) <= {float(int(x)), float(int(x) + (1 if x > 0 else -1))}


def test_many_steps_of_a_tenth_of_a_code_move_the_mean_and_nearest_moves_nothing():
    steps, scale = 200, 2.0**-10
    codes = torch.zeros(1, 4096)
    codes[0, 0] = 100
    weight, nearest = made(codes, group_size=4096), made(codes, group_size=4096)
    update = torch.full((1, 4096), 0.1 * scale)
    for step in range(steps):
        add_to_int8_(weight, update, seed=0, key=1, step=step)
        add_to_int8_(nearest, update, seed=0, key=1, step=step, stochastic=False)
    moved = (weight.dequantize()[0, 1:] / scale).double()
    # variance 0.1 * 0.9 of each of `steps` draws
    assert abs(float(moved.mean()) - 0.1 * steps) <= 4 * (0.09 * steps / 4095) ** 0.5
    assert torch.equal(nearest.codes, codes.to(torch.int8))


def test_updates_far_below_the_resolution_of_a_sum_are_not_lost():
    # 3e-6 codes a step vanish in float32 beside a code of 100, and are below 16 random bits.
    weight = made(torch.full((1, 1 << 20), 100), group_size=1 << 20)
    steps, x = 4, 3e-6
    for step in range(steps):
        add_to_int8_(weight, torch.full((1, 1 << 20), x * 2.0**-10), seed=0, key=1, step=step)
    moved = float((weight.codes.double() - 100).sum())
    expected = steps * x * (1 << 20)  # 12.6
    assert abs(moved - expected) <= 4 * expected**0.5
    assert moved > 0


def test_no_rounding_is_repeated_or_shared_between_steps_keys_and_seeds():
    def run(**keys):
        weight = made(torch.full((50, 256), 90))
        add_to_int8_(weight, torch.full((50, 256), 0.5 * 2.0**-10), **{"seed": 0, "key": 0, "step": 0, **keys})
        return weight

    same, others = run(), [run(step=1), run(key=1), run(seed=1)]
    assert equal(same, run())
    for other in others:
        agreement = float((same.codes == other.codes).double().mean())
        assert abs(agreement - 0.5) < 4 * 0.5 / (50 * 256) ** 0.5


@pytest.mark.parametrize("columns", [5, 256, 300, 1024])
@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 30]])
def test_any_tiling_gives_the_same_bits(columns, cuts, generator):
    values = torch.randn(40, columns, generator=generator) * 0.02
    update = torch.randn(40, columns, generator=generator) * 1e-3
    whole = Int8Weight.quantize(values)
    tiled = copy_of(whole)
    add_to_int8_(whole, update, beta=0.99, seed=1, key=2, step=3)
    for start, stop in zip([0, *cuts], [*cuts, 40], strict=True):
        rows = tiled.rows(start, stop)
        add_to_int8_(rows, update[start:stop], beta=0.99, seed=1, key=2, step=3, offset=start * columns)
    assert equal(whole, tiled)


@pytest.mark.parametrize("columns", [100, 300])
def test_decay_acts_on_the_mean_and_leaves_zeros(columns, generator):
    weight = Int8Weight.quantize(torch.randn(500, columns, generator=generator))
    weight.codes[0] = 0
    before = weight.dequantize(torch.float64)
    steps, beta = 10, 0.999
    for step in range(steps):
        add_to_int8_(weight, torch.zeros(500, columns), beta=beta, seed=0, key=1, step=step)
    error = weight.dequantize(torch.float64) - before * beta**steps
    assert torch.equal(weight.codes[0], torch.zeros(columns, dtype=torch.int8))
    # each step adds an error of variance at most 1/4 of a squared code
    assert abs(float((error / scale_of(weight).double()).mean())) < 4 * (steps / 4 / error.numel()) ** 0.5


# ---- scales that grow and shrink


@pytest.mark.parametrize("x", [2.3, 2.001, 40.0, 500.5, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_that_leaves_the_range_grows_without_bias(x, sign):
    # 2000 groups alike: the mean of what each element becomes is its value.
    groups, scale = 2000, 2.0**-10
    codes = torch.arange(-100, 156).clamp(max=125).repeat(groups, 1) * sign
    weight, update = made(codes), torch.zeros(groups, 256)
    update[:, -1] = x * scale * sign
    expected = (codes.double() * scale + update.double())[0]
    add_to_int8_(weight, update, seed=0, key=1, step=2)
    grown = weight.block_scale.unique()
    assert len(grown) == 1
    assert float(grown) == pytest.approx(max(1.25 * scale, (125 + x) * scale / 125), rel=2**-16)
    assert int(weight.codes.abs().amax()) <= 126
    error = weight.dequantize(torch.float64).mean(0) - expected
    # variance at most 1/4 of a squared code in each draw
    assert bool((error.abs() <= 4.5 * float(grown) * (0.25 / groups) ** 0.5).all())


def test_growth_depends_on_the_values_and_not_on_the_random_numbers():
    # 126 + 1.3 = 127.3: if only those grew that were rounded up to 128, the mean would be 127.09.
    rows = 20_000
    weight = made(torch.full((rows, 1), 126))
    add_to_int8_(weight, torch.full((rows, 1), 1.3 * 2.0**-10), seed=0, key=1, step=0)
    values = weight.dequantize(torch.float64) * 1024
    assert bool((weight.block_scale > 2.0**-10).all())
    assert abs(float(values.mean()) - 127.3) < 4 * 1.25 * 0.5 / rows**0.5


def test_the_headroom_and_the_end_of_the_range_are_used_before_a_scale_grows():
    weight = made(torch.full((1, 256), 125))
    add_to_int8_(weight, torch.full((1, 256), 2 * 2.0**-10), seed=0, key=1, step=0)
    assert weight.codes.unique().tolist() == [127] and float(weight.block_scale) == 2.0**-10
    # A tiny update from 127 on is rounded to 127 in float32; it must grow the scale and not become 128 = -128.
    add_to_int8_(weight, torch.full((1, 256), 1e-7 * 2.0**-10), seed=0, key=1, step=1)
    assert float(weight.block_scale) > 2.0**-10
    assert int(weight.codes.min()) > 100


def test_a_code_never_leaves_the_range_where_two_orders_of_one_sum_differ():
    # 122 * (0.99 - 1) + update is 5 and a fraction of 5e-7 if fused, and just 5 if not. Mutation: judged by the second
    # and rounded up by the first, one of a million codes becomes 128, which eight bits hold as -128.
    weight = made(torch.full((4096, 256), 122), scale=1.0)
    update = torch.full((4096, 256), float.fromhex("0x1.8e147cp+2"))
    add_to_int8_(weight, update, beta=0.99, seed=0, key=0, step=0)
    assert weight.codes.unique().tolist() == [127]


def test_a_group_that_falls_to_half_of_its_range_is_doubled_exactly():
    codes = torch.randint(-60, 61, (50, 256), generator=torch.Generator().manual_seed(0))
    codes[:, 0] = 100
    weight, update = made(codes), torch.zeros(50, 256)
    update[:, 0] = -70 * 2.0**-10
    expected = codes.double() * 2.0**-10 + update.double()
    add_to_int8_(weight, update, seed=0, key=1, step=0)
    assert torch.equal(weight.dequantize(torch.float64), expected)
    assert weight.block_scale.unique().tolist() == [2.0**-11]
    before = copy_of(weight)
    add_to_int8_(weight, torch.zeros(50, 256), seed=0, key=1, step=1)
    assert equal(weight, before)


def test_only_the_group_that_leaves_changes_its_scale(generator):
    weight = Int8Weight.quantize(torch.randn(6, 600, generator=generator))
    before, update = copy_of(weight), torch.zeros(6, 600)
    update[2, 599] = 50.0
    add_to_int8_(weight, update, seed=0, key=1, step=0)
    changed = weight.block_scale != before.block_scale
    assert changed.nonzero().tolist() == [[2, 2]]
    assert torch.equal(weight.codes[:, :512], before.codes[:, :512])


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_group_of_zeros_takes_the_scale_of_its_first_update(stochastic, generator):
    weight = Int8Weight.quantize(torch.zeros(30, 300))
    before = copy_of(weight)
    add_to_int8_(weight, torch.zeros(30, 300), seed=0, key=1, step=0, stochastic=stochastic)
    assert equal(weight, before)
    update = torch.randn(30, 300, generator=generator) * 1e-5
    add_to_int8_(weight, update, seed=0, key=1, step=1, stochastic=stochastic)
    limit = 1.0 if stochastic else 0.5
    assert bool(((weight.dequantize() - update).abs() <= scale_of(weight) * (limit + 1e-4)).all())
    assert torch.allclose(weight.block_scale[:, 0], update[:, :256].abs().amax(1) / 125, rtol=2**-16)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_update_that_is_not_finite_is_seen_and_stays_in_its_group(bad, generator):
    weight = Int8Weight.quantize(torch.randn(4, 600, generator=generator))
    before, update = weight.dequantize(), torch.zeros(4, 600)
    update[1, 300] = bad
    for step in range(2):
        add_to_int8_(weight, update, seed=0, key=1, step=step)
    after = weight.dequantize()
    assert bool(after[1, 256:512].isnan().all())
    after[1, 256:512] = before[1, 256:512]
    assert torch.equal(after, before)


def test_an_update_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match="update="):
        add_to_int8_(Int8Weight.quantize(torch.ones(3, 4)), torch.ones(4, 3), seed=0, key=0, step=0)


def test_random_walks_keep_their_mean_through_growth_and_shrinkage():
    # 300 steps drive the weights to 4 times their size and back to a quarter: the mean error of 8192 weights stays.
    weight = Int8Weight.quantize(torch.randn(32, 256, generator=torch.Generator().manual_seed(0)) * 0.01)
    target = weight.dequantize(torch.float64)
    worst = 0.0
    for step in range(300):
        factor = 1.01 if step < 140 else 0.98
        add_to_int8_(weight, ((factor - 1) * target).float(), seed=0, key=1, step=step)
        target = target * factor
        worst = max(worst, float(scale_of(weight).max()))
    error = weight.dequantize(torch.float64) - target
    assert abs(float(error.mean())) < 4 * worst * (300 / 4 / error.numel()) ** 0.5
    assert float(weight.block_scale.max()) < worst / 2


# ---- the random numbers


def test_uniform_numbers_do_not_depend_on_the_tiling_and_are_fine_near_zero():
    whole = uniform(1, 2, 3, 0, 200_000)
    assert torch.equal(uniform(1, 2, 3, 65_530, 100), whole[65_530:65_630])
    assert float(whole.min()) > 0 and float(whole.max()) <= 1
    # 200 000 draws of mean 1/2 and variance 1/12
    assert abs(float(whole.double().mean()) - 0.5) < 4 * (1 / 12 / 200_000) ** 0.5
    assert whole.unique().numel() > 195_000  # 24 bits or more
    across = uniform(1, 2, 3, (1 << 24) - 5, 10)
    assert torch.equal(across[5:], uniform(1, 2, 3, 1 << 24, 5)) and across.unique().numel() == 10
