"""Linear advection on the periodic unit cube: ``u_t + c . grad u = 0``, solved exactly by a shift of phases.

Shapes: n samples, s points at i / s in each of d axes.
Source: PDEBench, arXiv 2210.07182, appendix D.1 (problem and initial waves); the solver is ours.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from featherweight.errors import ShapeError


def solve_advection(initial: Tensor, *, speed: Sequence[float], final_time: float, snapshots: int = 1) -> Tensor:
    """Return initial values that have moved on.

    Exact for fields whose frequencies are below s / 2; of the frequency s / 2 itself, of which points see the cosine
    alone, that is what moves.

    Args:
        initial: (n, s_1, .., s_d).
        speed: c, one number for each axis, in unit cubes for a unit of time.
        final_time: T.
        snapshots: how many equally spaced times are returned, the last one is T.
    Returns:
        (n, snapshots, s_1, .., s_d) float64.
    Raises:
        ShapeError: if there are not as many speeds as axes.
    Cost: one FFT of n s^d values, and one for each time.
    """
    axes = tuple(range(1, initial.ndim))
    if len(speed) != len(axes) or not axes:
        raise ShapeError(
            f"solve_advection: speed={tuple(speed)} does not fit fields {tuple(initial.shape)}; expected a number for "
            "each axis of points. Give as many."
        )
    spectrum = torch.fft.fftn(initial.double(), dim=axes)
    turns = torch.zeros(initial.shape[1:], dtype=torch.float64, device=initial.device)
    for axis, c in zip(axes, speed, strict=True):
        size = initial.shape[axis]
        waves = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=initial.device)
        turns = turns + c * waves.view([-1 if one == axis else 1 for one in axes])
    times = [final_time * (index + 1) / snapshots for index in range(snapshots)]
    moved = [torch.fft.ifftn(spectrum * torch.exp(-2j * math.pi * turns * time), dim=axes).real for time in times]
    return torch.stack(moved, dim=1)


def waves_field(size: int, dimensions: int, *, largest: int, count: int, generators: Sequence[Generator]) -> Tensor:
    """Draw sums of plane waves with whole wavenumbers, amplitudes in [0, 1] and any phase.

    Args:
        size: s points in each axis.
        dimensions: d.
        largest: wavenumbers of an axis are 1 .. largest; in several axes each has any sign.
        count: waves of a field.
        generators: one for each field.
    Returns:
        (len(generators), s, .., s) float64.
    """
    points = torch.arange(size, dtype=torch.float64) / size
    fields = []
    for generator in generators:
        field = torch.zeros((size,) * dimensions, dtype=torch.float64)
        for _ in range(count):
            amplitude, turn = torch.rand(2, generator=generator, dtype=torch.float64)
            waves = torch.randint(1, largest + 1, (dimensions,), generator=generator).double()
            signs = torch.randint(0, 2, (dimensions,), generator=generator).double() * 2 - 1
            phase = 2 * math.pi * turn
            for axis in range(dimensions):
                shape = [-1 if one == axis else 1 for one in range(dimensions)]
                phase = phase + 2 * math.pi * waves[axis] * signs[axis] * points.view(shape)
            field = field + amplitude * torch.sin(phase)
        fields.append(field)
    return torch.stack(fields)
