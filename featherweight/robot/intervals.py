"""How far a number from some runs may be from that of all runs."""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959964
"""Half width of the middle 95 % of a normal distribution, in deviations."""
RESAMPLES = 2000


def wilson_interval(successes: int, runs: int) -> tuple[float, float]:
    """Return the interval of a share of successes at 95 %.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.

    Example:
        >>> [round(end, 3) for end in wilson_interval(47, 50)]
        [0.838, 0.979]
    """
    n, z = max(1, runs), Z_95
    share = successes / n
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of a mean at 95 %, from means of runs drawn again with a fixed seed (bootstrap).

    Example:
        >>> mean_interval([2.0, 2.0])
        (2.0, 2.0)
    """
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values, dtype=np.float64)[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
