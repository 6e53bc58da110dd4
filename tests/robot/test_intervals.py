"""Intervals."""

import numpy as np
import pytest

from featherweight.robot.intervals import mean_interval, wilson_interval


@pytest.mark.parametrize(("successes", "runs"), [(0, 50), (50, 50), (3, 7)])
def test_wilson_s_interval_holds_the_share_and_stays_between_0_and_1(successes, runs):
    low, high = wilson_interval(successes, runs)
    assert 0 <= low <= successes / runs + 1e-12 and high <= 1 and low < high
    # Failures are successes of the other outcome.
    assert wilson_interval(runs - successes, runs) == pytest.approx((1 - high, 1 - low))


def test_the_interval_of_a_mean_is_that_of_a_normal_sample_and_the_same_each_time():
    values = np.random.default_rng(0).normal(5, 2, 100)
    low, high = mean_interval(list(values))
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.03)
    # 1.96 standard errors to each side, as exact as 2000 draws make a percentile.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 10, rel=0.08)
    assert mean_interval(list(values)) == (low, high)
