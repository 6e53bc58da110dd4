"""Many runs of the challenge in one row: success, points, time and smoothness, with how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featherweight.robot.challenge.score import Score
from featherweight.robot.intervals import mean_interval, wilson_interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Runs of one operator over one network; intervals hold 95 %."""

    runs: int
    complete: int
    """Runs that put every cube into the bin."""
    complete_interval: Interval
    """Of the share of complete runs."""
    points: float
    points_interval: Interval
    time_s: float
    """Mean over all runs; one that is not complete counts with the whole time."""
    time_interval_s: Interval
    spectral_arc_length: float
    """Smoothness of the tool's path; nearer to 0 is smoother."""
    spectral_arc_length_interval: Interval
    log_jerk: float
    """Smoothness, too: minus the logarithm of the dimensionless jerk; larger is smoother."""
    path_m: float
    hold_s: float
    drops: float
    collisions: float
    round_trip_ms: float


def summarize(scores: Sequence[Score]) -> Summary:
    """Return the row of some runs, at least one."""
    complete = sum(one.placed == one.cubes for one in scores)
    columns = {name: [float(getattr(one, name)) for one in scores] for name in _MEANS}
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    return Summary(
        runs=len(scores),
        complete=complete,
        complete_interval=wilson_interval(complete, len(scores)),
        points_interval=mean_interval(columns["points"]),
        time_interval_s=mean_interval(columns["time_s"]),
        spectral_arc_length_interval=mean_interval(columns["spectral_arc_length"]),
        **means,
    )


_MEANS = (
    "points",
    "time_s",
    "spectral_arc_length",
    "log_jerk",
    "path_m",
    "hold_s",
    "drops",
    "collisions",
    "round_trip_ms",
)
