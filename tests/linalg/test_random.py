import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.linalg.random import keyed_generator, mix_keys, random_orthonormal


def test_splitmix64_gives_the_published_sequence():
    # First outputs of the reference generator for seed 1234567: state advances by the golden gamma each time.
    gamma, seed = 0x9E3779B97F4A7C15, 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [mix_keys((seed + i * gamma) % 2**64) for i in range(3)] == expected


def test_every_key_and_their_order_matter():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 0, 0), (-1,), (2**63,), (5, 7), (7, 5)]
    assert len({mix_keys(0, *each) for each in keys} | {mix_keys(1, *each) for each in keys}) == 2 * len(keys)


def test_flipping_one_bit_of_a_key_flips_half_of_the_result():
    flips = [(mix_keys(3, 9, 4) ^ mix_keys(3, 9 ^ (1 << bit), 4)).bit_count() for bit in range(64)]
    # 64 draws of a binomial(64, 1/2): standard error of the mean 4 / 8 = 0.5; four of them.
    assert abs(sum(flips) / 64 - 32) < 2


def test_equal_keys_draw_equal_numbers_whatever_was_drawn_before():
    torch.rand(7)
    first = torch.rand(5, generator=keyed_generator(1, 2, 3))
    torch.rand(11)
    assert torch.equal(first, torch.rand(5, generator=keyed_generator(1, 2, 3)))
    assert not torch.equal(first, torch.rand(5, generator=keyed_generator(1, 2, 4)))


def test_random_columns_are_orthonormal_and_uniform_on_the_sphere():
    columns = random_orthonormal(4, 2, batch=(20000,), generator=keyed_generator(0))
    gram = columns.mT @ columns
    torch.testing.assert_close(gram, torch.eye(2).expand_as(gram), rtol=0, atol=1e-5)
    # On the unit sphere in 4 dimensions an entry has mean 0 and mean square 1/4, variance of the square 1/16: four
    # standard errors of 20000 draws. Mutation: without the sign of the triangle, entries of column 0 have another mean.
    assert bool((columns.mean(dim=0).abs() < 4 * (0.25 / 20000) ** 0.5).all())
    assert bool(((columns.square().mean(dim=0) - 0.25).abs() < 4 * 0.25 / 20000**0.5).all())


def test_double_precision_is_orthonormal_to_double_precision():
    columns = random_orthonormal(30, 10, generator=keyed_generator(0), dtype=torch.float64)
    assert columns.dtype == torch.float64
    # 30-term sums of numbers below 1 in double precision.
    assert float((columns.mT @ columns - torch.eye(10, dtype=torch.float64)).abs().max()) < 1e-13


@pytest.mark.parametrize("rank", [0, -1, 6])
def test_a_rank_outside_the_rows_is_refused(rank):
    with pytest.raises(ConfigError, match=f"random_orthonormal: rank={rank} does not fit rows=5"):
        random_orthonormal(5, rank, generator=keyed_generator(0))
