"""What problems that advance in time share: how many steps, and how far they are off."""

import math
from collections.abc import Callable
from contextlib import suppress

from torch import Tensor

from featherweight.errors import NumericsError
from featherweight.pde.metrics import relative_l2
from featherweight.pde.spectral import halved
from featherweight.pde.time_options import TimedT


def timed_errors(
    config: TimedT, initial: Tensor, solve: Callable[[TimedT, Tensor], Tensor], *, order: int
) -> dict[str, float]:
    """Return relative errors of the last time, the largest of the samples.

    "time_step": estimated from about half as many steps, whose error is 2^order times as large; infinite if these leave
    the number range. "half_grid": the change with half as many points in each axis, which overstates the error of the
    grid; missing if it cannot be halved.
    """
    resolved = config.resolved()
    steps = resolved.steps or 1
    fewer = max(1, steps // 2 // config.snapshots) * config.snapshots
    found, errors = solve(resolved, initial)[:, -1], {}
    if fewer < steps:
        try:
            coarse = solve(resolved.model_copy(update={"steps": fewer}), initial)[:, -1]
            errors["time_step"] = difference(coarse, found) / ((steps / fewer) ** order - 1)
        except NumericsError:
            errors["time_step"] = math.inf
    if initial.shape[1] % 4 == 0:
        every = (slice(None), *[slice(None, None, 2)] * (initial.ndim - 1))
        with suppress(NumericsError):
            errors["half_grid"] = difference(solve(resolved, halved(initial))[:, -1], found[every])
    return errors


def difference(one: Tensor, two: Tensor) -> float:
    """Return the largest relative distance of two batches of fields."""
    return float(relative_l2(one, two).max())


def without_single_time(solution: Tensor) -> Tensor:
    """Return (n, points) of a solution (n, 1, points), or the solution as it is."""
    return solution[:, 0] if solution.shape[1] == 1 else solution
