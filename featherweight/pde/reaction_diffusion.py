"""A reaction that spreads on the periodic unit cube: ``u_t = nu Laplace u + rho u (1 - u)`` (Fisher, Kolmogorov).

Strang splitting of two flows that are known exactly: half a step of diffusion in Fourier space, a step of the logistic
reaction at each point, half a step of diffusion. Second order in time, and stable at any step.
Shapes: n samples, s points at i / s in each of d axes.
Source: PDEBench, arXiv 2210.07182, appendix D.3 (problem); the reaction is integrated exactly there, too.
"""

import math

import torch
from torch import Tensor

from featherweight.errors import NumericsError, ShapeError


def solve_reaction_diffusion(
    initial: Tensor, *, viscosity: float, reaction: float, final_time: float, steps: int, snapshots: int = 1
) -> Tensor:
    """Advance u from t = 0 to `final_time`.

    Args:
        initial: (n, s_1, .., s_d) values; negative ones run to minus infinity in finite time.
        viscosity: nu >= 0.
        reaction: rho.
        final_time: T.
        steps: time steps, a multiple of `snapshots`.
        snapshots: how many equally spaced times are returned, the last one is T.
    Returns:
        (n, snapshots, s_1, .., s_d) float64.
    Raises:
        ShapeError: if `initial` is no batch, or `snapshots` does not divide `steps`.
        NumericsError: if the solution leaves the number range.
    Cost: two FFTs of n s^d values a step.
    """
    if initial.ndim < 2 or steps % snapshots:
        raise ShapeError(
            f"solve_reaction_diffusion: initial={tuple(initial.shape)}, steps={steps}, snapshots={snapshots}; expected "
            "(n, points) and a number of snapshots that divides steps. Reshape, or change steps."
        )
    axes, sizes = tuple(range(1, initial.ndim)), initial.shape[1:]
    squares = torch.zeros((1,) * len(sizes), dtype=torch.float64, device=initial.device)
    for axis, size in enumerate(sizes):
        last = axis == len(sizes) - 1  # one-sided
        waves = torch.arange(size // 2 + 1).double() if last else torch.fft.fftfreq(size, 1 / size).double()
        shape = [-1 if one == axis else 1 for one in range(len(sizes))]
        squares = squares + waves.to(initial.device).square().view(shape)
    dt = final_time / steps
    half = torch.exp(-viscosity * 4 * math.pi**2 * squares * dt / 2)
    growth = math.exp(reaction * dt)

    def diffuse(u: Tensor, decay: Tensor) -> Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(u, dim=axes) * decay, s=sizes, dim=axes)

    u, taken = diffuse(initial.double(), half), []
    for index in range(1, steps + 1):
        u = u * growth / (1 + u * (growth - 1))
        is_stored = index % (steps // snapshots) == 0
        if is_stored:
            taken.append(diffuse(u, half))
        u = diffuse(u, half.square())  # the second half of this step and the first one of the next
    result = torch.stack(taken, dim=1)
    if not bool(result.isfinite().all()):
        raise NumericsError(
            f"solve_reaction_diffusion: reaction={reaction} to final_time={final_time} leaves the number range; "
            "expected initial values in [0, 1]. Shift them."
        )
    return result
