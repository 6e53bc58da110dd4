"""The write of the weight: decay and update in one pass, without a temporary of the weight's size.

float32 and float64 weights are updated in place. 16-bit weights are raised to float32 tile by tile, updated, and
written back: bfloat16 with stochastic rounding, as an update below half a unit in the last place (2^-9 of the weight)
would otherwise vanish; float16, whose unit is 8 times finer, to nearest. The rounding bits are a function of (seed,
parameter, step, element), so tiling and resume do not change them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.quant.rounding import stochastic_round_

TILE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Rounding:
    """Key of the random bits of one write; `stochastic=False` rounds to nearest."""

    seed: int
    parameter: int
    step: int
    stochastic: bool = True
    tensor: int = 0
    """0 for the weight, 1, 2, ... for its moments: each draws its own bits."""


def add_core_(
    weight: Tensor,
    subspace: MatrixSubspace,
    core: Tensor | None,
    *,
    alpha: float,
    beta: float,
    rounding: Rounding,
    offset: int = 0,
    extra: Tensor | None = None,
) -> None:
    """Compute ``weight <- beta * weight + alpha * (subspace.project_back(core) + extra)`` in place.

    Args:
        weight: (M, N), any float dtype.
        subspace: bases in the dtype of the core.
        core: float32, or float64 for a float64 weight; None if `extra` is the whole update.
        alpha: factor of the update.
        beta: factor of the weight.
        rounding: used below float32.
        offset: index of this matrix's first element in its parameter, for the rounding bits.
        extra: (M, N) direction from outside the subspace, or None.
    Cost: one GEMM, 2*M*N*R FLOPs; at most `TILE_ELEMENTS` float32 temporaries, none for float32 weights.
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    columns = weight.shape[1]
    height = weight.shape[0] if weight.dtype == dtype else max(1, TILE_ELEMENTS // columns)
    for start, stop in tiles(weight.shape[0], height):
        rows = weight[start:stop]
        wide = rows if rows.dtype == dtype else rows.to(dtype)
        if core is None:
            wide.mul_(beta)
        else:
            left = None if subspace.left is None else subspace.left[start:stop]
            part = MatrixSubspace(left=left, right=subspace.right)
            part.add_back_(wide, core if subspace.left is not None else core[start:stop], alpha=alpha, beta=beta)
        if extra is not None:
            wide.add_(extra[start:stop], alpha=alpha)
        if wide is not rows:
            write_(rows, wide, rounding, offset + start * columns)


def write_(weight: Tensor, values: Tensor, rounding: Rounding, offset: int) -> None:
    """Write values into a weight (or moment) of any float dtype, stochastically into bfloat16 if asked.

    Args:
        weight: any shape; written in place.
        values: same shape, float32 or float64.
        rounding: key of the random bits.
        offset: index of the first element in its parameter.
    """
    if weight.dtype == torch.bfloat16 and rounding.stochastic:
        key, step = rounding.parameter | rounding.tensor << 32, rounding.step
        stochastic_round_(weight, values.float(), seed=rounding.seed, key=key, step=step, offset=offset)
    else:
        weight.copy_(values)


def tiles(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive runs of at most `size`.

    Example:
        >>> list(tiles(5, 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, length, size):
        yield start, min(start + size, length)
