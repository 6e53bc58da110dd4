"""Ranges from sweeps."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.leaders.calibration import calibrate_channel


def sweeps(channel, low=0.4, high=4.6, count=4, lines=400, seed=0, inverted=False):
    """Return (T, 6) volts: one channel swept, the others still, all with a bit of noise."""
    rng = np.random.default_rng(seed)
    wave = (1 - np.cos(np.linspace(0, np.pi * count, lines))) / 2
    volts = np.full((lines, 6), 2.5)
    volts[:, channel] = low + (high - low) * ((1 - wave) if inverted else wave)
    return np.clip(volts + rng.normal(0, 0.003, volts.shape), 0, 5)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_swept_channel_is_mapped_to_the_whole_range(inverted):
    found = calibrate_channel(sweeps(2, inverted=inverted), 2)

    # 1 % and 99 % of a sine lie 0.1 % of the range inside.
    assert found.min_v == pytest.approx(0.4, abs=0.03) and found.max_v == pytest.approx(4.6, abs=0.03)
    assert found.invert is inverted


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.random.default_rng(0).uniform(0, 5, (400, 6)), "floats"),
        (sweeps(3), "stood still while potentiometer 4 moved"),
        (sweeps(0, low=2.0, high=2.8), "moved by 0.8"),
        (sweeps(0, count=1), "swept 1 times"),
        (np.zeros((5, 6)), "at least 20"),
        (np.full((50, 6), np.nan), "finite"),
    ],
)
def test_a_wrong_calibration_is_one_sentence_and_changes_nothing(samples, message):
    with pytest.raises(ConfigError, match=message) as caught:
        calibrate_channel(samples, 0)

    assert "\n" not in str(caught.value) and "potentiometer=1" in str(caught.value)
