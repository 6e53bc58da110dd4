"""Calibration of potentiometers: ranges from sweeps, with checks for floating and swapped channels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from featherweight.errors import ConfigError
from featherweight.robot.kinematics.dh import Array

MIN_SPAN_V = 1.0
MIN_SWEEPS = 3
"""Ways from one end to the other; there and back are two."""
FLOATING_SHARE = 0.2
"""Share of sudden jumps (over 1 V from line to line) above which a channel floats; no hand turns that fast."""
SWAPPED_SHARE = 0.5
"""Another channel that moves more than this share of the asked one is the one that was moved."""


@dataclass(frozen=True)
class PotRange:
    """The range of one potentiometer."""

    min_v: float
    max_v: float
    invert: bool


def calibrate_channel(samples_v: ArrayLike, channel: int) -> PotRange:
    """Find the range of one channel from samples taken while it alone was swept, beginning at its low end.

    Args:
        samples_v: (T, 6) voltages of all channels, about 88 a second.
        channel: 0 to 5, the one that was swept.
    Returns:
        Range from the 1 % and 99 % percentiles; `invert` if the low end has the higher voltage.
    Raises:
        ConfigError: if the channel floats, hardly moved, was swept too rarely, or another one moved in its place.
    """
    samples = np.asarray(samples_v, dtype=np.float64)
    where = f"calibrate: potentiometer={channel + 1}"
    if samples.ndim != 2 or samples.shape[1] != 6 or len(samples) < 20 or not np.isfinite(samples).all():
        raise ConfigError(
            f"{where} has samples of shape {samples.shape}; expected at least 20 of 6 finite volts. Try again."
        )
    if is_floating(samples[:, channel]):
        raise ConfigError(
            f"{where} floats: it jumps without being moved; expected a connected one. Check its three wires."
        )
    low, high = np.percentile(samples, [1, 99], axis=0)
    spans = high - low
    spans[[i for i in range(6) if i != channel and is_floating(samples[:, i])]] = 0
    moved = int(np.argmax(spans))
    if moved != channel and spans[channel] < SWAPPED_SHARE * spans[moved] and spans[moved] > MIN_SPAN_V:
        raise ConfigError(
            f"{where} stood still while potentiometer {moved + 1} moved; expected the one that was asked for. "
            f"Move the right one, or swap the wires of {channel + 1} and {moved + 1}."
        )
    if spans[channel] <= MIN_SPAN_V:
        raise ConfigError(
            f"{where} moved by {spans[channel]:.2f} V; expected more than {MIN_SPAN_V:g} V. Turn it from end to end."
        )
    sweeps = count_sweeps(samples[:, channel], float(low[channel]), float(high[channel]))
    if sweeps < MIN_SWEEPS:
        raise ConfigError(
            f"{where} was swept {sweeps} times; expected at least {MIN_SWEEPS}. Turn it there and back twice."
        )
    start = float(np.median(samples[:10, channel]))
    return PotRange(float(low[channel]), float(high[channel]), bool(start > (low[channel] + high[channel]) / 2))


def is_floating(samples_v: Array) -> bool:
    """Whether a channel jumps from line to line as an open pin does."""
    if len(samples_v) < 2:
        return False
    return bool(np.mean(np.abs(np.diff(samples_v)) > 1.0) > FLOATING_SHARE)


def count_sweeps(samples_v: Array, low_v: float, high_v: float) -> int:
    """Count the ways between the lower and the upper quarter of a range."""
    quarter = (high_v - low_v) / 4
    zones = np.where(samples_v < low_v + quarter, -1, np.where(samples_v > high_v - quarter, 1, 0))
    ends = zones[zones != 0]
    return int(np.count_nonzero(np.diff(ends)))
