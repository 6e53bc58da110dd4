"""Filters of a potentiometer."""

import numpy as np
import pytest

from featherweight.robot.leaders.filter import PotFilter


def test_the_filter_calms_noise_at_rest_and_follows_motion():
    rng = np.random.default_rng(0)
    still = PotFilter(1.5, 0.02, 0.0049)
    values = [still(2.5 + round(rng.normal(0, 0.4)) * 5 / 1023, 0.0114) for _ in range(300)]
    assert np.std(values[100:]) < 0.003

    moving = PotFilter(1.5, 0.02, 0.0049)
    for i in range(200):
        last = moving(min(4.0, 1.0 + i * 0.0114 * 2), 0.0114)
    assert last == pytest.approx(4.0, abs=0.15)

    spiky = PotFilter(1.5, 0.02, 0.0049)
    for value in [2.0] * 20 + [5.0] + [2.0] * 3:
        last = spiky(value, 0.0114)
    assert last == pytest.approx(2.0, abs=1e-9)
