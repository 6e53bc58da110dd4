"""Filters of a potentiometer: median of three, One-Euro, dead band.

Source: Casiez et al., 1 Euro Filter, CHI 2012.
"""

import math


class OneEuro:
    """A low-pass whose cut-off rises with the speed: calm at rest, quick in motion.

    Args:
        cutoff_hz: at rest.
        beta: how much the cut-off rises per unit of speed.
        speed_cutoff_hz: of the low-pass of the speed.
    """

    def __init__(self, cutoff_hz: float, beta: float, speed_cutoff_hz: float = 1.0) -> None:
        self._cutoff_hz, self._beta, self._speed_cutoff_hz = cutoff_hz, beta, speed_cutoff_hz
        self._value: float | None = None
        self._speed = 0.0

    def __call__(self, value: float, elapsed_s: float) -> float:
        """Filter one value that came `elapsed_s` after the one before."""
        if self._value is None or elapsed_s <= 0:
            self._value = value if self._value is None else self._value
            return self._value
        speed = (value - self._value) / elapsed_s
        self._speed += _share(self._speed_cutoff_hz, elapsed_s) * (speed - self._speed)
        self._value += _share(self._cutoff_hz + self._beta * abs(self._speed), elapsed_s) * (value - self._value)
        return self._value


def _share(cutoff_hz: float, elapsed_s: float) -> float:
    return 1 / (1 + 1 / (2 * math.pi * cutoff_hz * elapsed_s))


class PotFilter:
    """Volts in, volts out: median of three against spikes, dead band against the last bit, One-Euro against noise.

    Args:
        cutoff_hz: see `OneEuro`.
        beta: see `OneEuro`, per degree a second.
        deadband_v: change below which the input counts as still.
        degrees_per_volt: turns the speed into degrees a second.
    """

    def __init__(self, cutoff_hz: float, beta: float, deadband_v: float, degrees_per_volt: float = 36.0) -> None:
        self._smooth = OneEuro(cutoff_hz, beta * degrees_per_volt)
        self._deadband_v = deadband_v
        self._recent: list[float] = []
        self._still_v: float | None = None

    def __call__(self, value_v: float, elapsed_s: float) -> float:
        """Filter one voltage."""
        self._recent = [*self._recent[-2:], value_v]
        median = sorted(self._recent)[len(self._recent) // 2]
        if self._still_v is None or abs(median - self._still_v) > self._deadband_v:
            self._still_v = median
        return self._smooth(self._still_v, elapsed_s)
