"""Shallow water over flat ground in a periodic square, as heights and momenta.

``h_t + div(h u) = 0`` and ``(h u)_t + div(h u u) + grad(g h^2 / 2) = 0``.

Finite volumes: slopes of h and the velocities limited by van Leer's mean, HLL fluxes, Heun's second-order time steps.
Volume and momentum are conserved to rounding, shocks stay sharp, and water at rest stays at rest.
Shapes: n samples, s cells in each axis, whose centres are (i + 1/2) / s of the side.
Sources: PDEBench, arXiv 2210.07182, appendix D.5 (radial dam break); Harten, Lax, van Leer, SIAM Review 25 (1983), 35.
"""

import torch
from torch import Tensor

from featherweight.errors import NumericsError, ShapeError

COURANT = 0.4
"""Share of a cell that the fastest wave crosses in a step, in each of the two axes."""


def fastest_wave(height: float, gravity: float) -> float:
    """Return a bound on |u| + (g h)^1/2 where water of a height begins at rest: that of a dam broken to dry ground."""
    return 2 * (gravity * height) ** 0.5


def solve_shallow_water(
    height: Tensor,
    *,
    final_time: float,
    steps: int,
    gravity: float = 1.0,
    length: float = 1.0,
    velocity: Tensor | None = None,
    snapshots: int = 1,
) -> Tensor:
    """Advance heights and flow from t = 0 to `final_time`.

    Args:
        height: (n, s, s) positive; axis 1 is x, axis 2 is y.
        final_time: T.
        steps: time steps, a multiple of `snapshots`.
        gravity: g.
        length: side of the square.
        velocity: (n, 2, s, s) at t = 0; None for water at rest.
        snapshots: how many equally spaced times are returned, the last one is T.
    Returns:
        (n, snapshots, 3, s, s) float64: h, h u, h v.
    Raises:
        ShapeError: if the shapes do not fit, or `snapshots` does not divide `steps`.
        NumericsError: if a height is not positive at the start or on the way: the time step is too long.
    Cost: about 200 operations for each cell and step.
    """
    if height.ndim != 3 or steps % snapshots or (velocity is not None and velocity.shape[2:] != height.shape[1:]):
        given = None if velocity is None else tuple(velocity.shape)
        raise ShapeError(
            f"solve_shallow_water: height={tuple(height.shape)}, velocity={given}, steps={steps}, "
            f"snapshots={snapshots}; expected (n, s, s), (n, 2, s, s), and a number of snapshots that divides steps. "
            "Reshape, or change steps."
        )
    h = height.double()
    momentum = (
        torch.zeros_like(h)[:, None].expand(-1, 2, -1, -1) if velocity is None else h[:, None] * velocity.double()
    )
    state, taken = torch.cat([h[:, None], momentum], dim=1), []
    shares = [final_time / steps * size / length for size in height.shape[1:]]
    for index in range(1, steps + 1):
        first = state + _change(state, gravity, shares)
        state = (state + first + _change(first, gravity, shares)) / 2
        if not bool((state[:, 0] > 0).all()):
            raise NumericsError(
                f"solve_shallow_water: a height is not positive in step {index} of steps={steps} to "
                f"final_time={final_time}; expected positive heights, and short steps. Double steps."
            )
        if index % (steps // snapshots) == 0:
            taken.append(state)
    return torch.stack(taken, dim=1)


def _change(state: Tensor, gravity: float, shares: list[float]) -> Tensor:
    """Return dt times the time derivative."""
    total = torch.zeros_like(state)
    h = state[:, :1]
    values = torch.cat([h, state[:, 1:] / h], dim=1)  # heights and velocities: these keep water at rest at rest
    for axis, share in ((2, shares[0]), (3, shares[1])):
        slope = _slopes(values, axis)
        left, right = values + slope / 2, (values - slope / 2).roll(-1, axis)
        flux = _hll(left, right, axis - 1, gravity)  # through the face behind each cell
        total -= share * (flux - flux.roll(1, axis))
    return total


def _slopes(values: Tensor, axis: int) -> Tensor:
    """Return van Leer's harmonic mean of the two differences, 0 at extrema; heights between cells stay positive."""
    ahead = values.roll(-1, axis) - values
    behind = ahead.roll(1, axis)
    product = ahead * behind
    total = ahead + behind
    return torch.where(product > 0, 2 * product / torch.where(total == 0, 1, total), 0)


def _hll(left: Tensor, right: Tensor, direction: int, gravity: float) -> Tensor:
    speeds = [(values[:, direction], (gravity * values[:, 0]).sqrt()) for values in (left, right)]
    slow = torch.minimum(speeds[0][0] - speeds[0][1], speeds[1][0] - speeds[1][1]).clamp_max(0)[:, None]
    fast = torch.maximum(speeds[0][0] + speeds[0][1], speeds[1][0] + speeds[1][1]).clamp_min(0)[:, None]
    (state_left, flux_left), (state_right, flux_right) = (_flux(one, direction, gravity) for one in (left, right))
    mixed = fast * flux_left - slow * flux_right + fast * slow * (state_right - state_left)
    return mixed / (fast - slow)


def _flux(values: Tensor, direction: int, gravity: float) -> tuple[Tensor, Tensor]:
    """Return conserved values and their flux in a direction (1: x, 2: y)."""
    h = values[:, :1]
    state = torch.cat([h, h * values[:, 1:]], dim=1)
    flux = state * values[:, direction : direction + 1]
    flux[:, direction] += gravity * values[:, 0].square() / 2
    return state, flux
