"""The write of the weight: decay and update in one pass, without a temporary of the weight's size.

float32 and float64 weights are updated in place. 16-bit weights are raised to float32 tile by tile, updated, and
written back: bfloat16 with stochastic rounding, as an update below half a unit in the last place (2^-9 of the weight)
would otherwise vanish; float16, whose unit is 8 times finer, to nearest. Weights of eight bits get their update as
whole codes, tile by tile, rounded stochastically too (`featherweight.quant.int8_update`). The rounding bits are a
function of (seed, parameter, step, element), so tiling and resume do not change them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight import kernels
from featherweight.kernels import native
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.quant.int8_update import add_to_int8_
from featherweight.quant.int8_weight import Int8Weight, int8_weight_of
from featherweight.quant.rounding import key_pairs, stochastic_round_
from featherweight.quant.storage import StateStorage
from featherweight.simulated import device_kind
from featherweight.tiles import tiles

TILE_ELEMENTS = 1 << 20
SLICE_ELEMENTS = 1 << 20
SLICE_ELEMENTS_CPU = 1 << 18
"""Temporaries of a slice stay in the cache of a CPU; a GPU wants few launches."""
BLOCK_ELEMENTS = 256
"""A multiple of the blocks of all storages of moments."""


@dataclass(frozen=True)
class Rounding:
    """Key of the random bits of one write; `stochastic=False` rounds to nearest."""

    seed: int
    parameter: int
    step: int
    stochastic: bool = True
    tensor: int = 0
    """0 for the weight, 1, 2, ... for its moments: each draws its own bits."""
    row_stride: int | None = None
    """Elements from row to row in the whole parameter, where columns of it are written; None where all columns are."""

    @property
    def key(self) -> int:
        """Tells this tensor from all others of the optimizer."""
        return self.parameter | self.tensor << 32


def rounding_of(group: Mapping[str, Any], parameter: int, step: int) -> Rounding:
    """Return the key of the random bits with which a step writes a parameter, which is known by its position."""
    return Rounding(group["seed"], parameter, step, group["stochastic_rounding"])


def write_factors(group: Mapping[str, Any]) -> tuple[float, float]:
    """Return (factor of the direction, factor of the weight) of one write.

    Decay first (torch.optim): ``W (1 - lr wd) - lr D``. Decay last (galore-torch): ``(W - lr D)(1 - lr wd)``.
    """
    lr = float(group["lr"])
    kept = 1 - lr * group["weight_decay"]
    return (-lr, kept) if group["decay_order"] == "before" else (-lr * kept, kept)


def weight_of(parameter: Tensor) -> Tensor | Int8Weight:
    """Return what a step of a parameter writes: its data, or a contiguous copy for `copy_back`, or its int8 weight."""
    # What stands for an int8 weight is of another class, in a simulation too.
    int8 = None if type(parameter) is nn.Parameter else int8_weight_of(parameter)
    if int8 is not None:
        return int8
    return parameter.detach() if parameter.is_contiguous() else parameter.detach().contiguous()


def copy_back(parameter: Tensor, weight: Tensor | Int8Weight) -> None:
    """Write the contiguous copy that `weight_of` has made, if it made one, into the parameter."""
    if isinstance(weight, Tensor) and not parameter.is_contiguous():
        parameter.copy_(weight.view(parameter.shape))


def add_core_(
    weight: Tensor | Int8Weight,
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
        weight: (M, N), any float dtype or int8.
        subspace: bases in the dtype of the core.
        core: float32, or float64 for a float64 weight; None if `extra` is the whole update.
        alpha: factor of the update.
        beta: factor of the weight.
        rounding: used below float32.
        offset: index of this matrix's first element in its parameter, for the rounding bits.
        extra: (M, N) direction from outside the subspace, or None.
    Cost: one GEMM, 2*M*N*R FLOPs; at most `TILE_ELEMENTS` float32 temporaries, none for float32 weights.
    """
    if isinstance(weight, Int8Weight):
        _add_core_to_int8_(weight, subspace, core, alpha, beta, rounding, offset, extra)
        return
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    length, columns = weight.shape
    is_half = weight.dtype == torch.bfloat16 and _is_half(subspace)
    if core is not None and is_half:
        core = (core * alpha).bfloat16()  # rounds the update, not the weight, by 2^-9 of its own size
    is_wide = weight.dtype == dtype
    for start, stop in [(0, length)] if is_wide else tiles(length, max(1, TILE_ELEMENTS // columns)):
        rows = weight[start:stop]
        wide = rows if is_wide else rows.to(dtype)
        if core is None:
            wide.mul_(beta)
        else:
            part, core_part = _rows_of(subspace, core, start, stop)
            if is_half:
                wide = part.project_back(core_part).add_(wide, alpha=beta)
            else:
                part.add_back_(wide, core_part, alpha=alpha, beta=beta)
        if extra is not None:
            wide.add_(extra[start:stop], alpha=alpha)
        if not is_wide:
            write_(rows, wide, rounding, offset + start * (rounding.row_stride or columns))


def _is_half(subspace: MatrixSubspace) -> bool:
    """Say whether products with the bases run in bfloat16."""
    return all(basis is None or basis.dtype == torch.bfloat16 for basis in (subspace.left, subspace.right))


def _add_core_to_int8_(
    weight: Int8Weight,
    subspace: MatrixSubspace,
    core: Tensor | None,
    alpha: float,
    beta: float,
    rounding: Rounding,
    offset: int,
    extra: Tensor | None,
) -> None:
    if core is not None:
        core = core * alpha
        core = core.bfloat16() if _is_half(subspace) else core
    for start, stop in weight.row_tiles(TILE_ELEMENTS):
        if core is None:
            assert extra is not None
            update = extra[start:stop] * alpha
        else:
            part, core_part = _rows_of(subspace, core, start, stop)
            update = part.project_back(core_part)
            if extra is not None:
                update.add_(extra[start:stop], alpha=alpha)
        _add_int8_(weight.rows(start, stop), update, beta, rounding, offset + start * weight.shape[1])


def _rows_of(subspace: MatrixSubspace, core: Tensor, start: int, stop: int) -> tuple[MatrixSubspace, Tensor]:
    """Return the subspace and core of some rows of a matrix."""
    if subspace.left is None:
        return subspace, core[start:stop]
    return MatrixSubspace(left=subspace.left[start:stop], right=subspace.right), core


def add_direction_(
    weight: Tensor | Int8Weight, direction: Tensor, *, alpha: float, beta: float, rounding: Rounding, offset: int
) -> None:
    """Compute ``weight <- beta * weight + alpha * direction`` in place.

    Args:
        weight: any shape and float dtype, or int8 rows (M, N).
        direction: as many elements, float32 or float64.
        alpha: factor of the direction.
        beta: factor of the weight.
        rounding: used below float32.
        offset: index of the first element in its parameter.
    """
    if isinstance(weight, Int8Weight):
        _add_int8_(weight, (direction * alpha).view(weight.shape), beta, rounding, offset)
    elif weight.dtype == direction.dtype:
        weight.mul_(beta).add_(direction, alpha=alpha)
    elif rounding.stochastic and (kernel := _rounding_kernel(weight, direction)) is not None:
        keys = key_pairs(rounding.seed, rounding.key, rounding.step)
        kernel.add_direction_(weight, direction, alpha=alpha, beta=beta, offset=offset, key_pair=keys)
    else:
        write_(weight, weight.to(direction.dtype).mul_(beta).add_(direction, alpha=alpha), rounding, offset)


def _rounding_kernel(weight: Tensor, direction: Tensor) -> Any:
    """Return the module whose `add_direction_` serves these tensors, or None."""
    if weight.dtype != torch.bfloat16 or direction.dtype != torch.float32 or not weight.is_contiguous():
        return None
    if native.runs_on(weight) and native.runs_on(direction):
        return native
    return kernels.rounding if kernels.run_on(weight) else None


def _add_int8_(rows: Int8Weight, update: Tensor, beta: float, rounding: Rounding, offset: int) -> None:
    add_to_int8_(
        rows,
        update.float(),
        beta=beta,
        seed=rounding.seed,
        key=rounding.parameter,
        step=rounding.step,
        offset=offset,
        stochastic=rounding.stochastic,
    )


def write_(weight: Tensor, values: Tensor, rounding: Rounding, offset: int) -> None:
    """Write values into a weight (or moment) of any float dtype, stochastically into bfloat16 if asked.

    Args:
        weight: any shape; written in place.
        values: same shape, float32 or float64.
        rounding: key of the random bits.
        offset: index of the first element in its parameter.
    """
    if weight.dtype == torch.bfloat16 and rounding.stochastic:
        keys = {"seed": rounding.seed, "key": rounding.key, "step": rounding.step}
        if rounding.row_stride is None:
            stochastic_round_(weight, values.float(), **keys, offset=offset)
            return
        for number, (row, wide) in enumerate(zip(weight, values.float(), strict=True)):
            stochastic_round_(row, wide, **keys, offset=offset + number * rounding.row_stride)
    else:
        weight.copy_(values)


def write_moment_(
    storage: StateStorage, parts: Mapping[str, Tensor], values: Tensor, rounding: Rounding, offset: int
) -> None:
    """Store a moment; in bfloat16 with stochastic rounding.

    To nearest, a second moment with decay 0.999 would never fall: a change of 0.001 is below half a unit.
    """
    dense = parts.get("")
    if dense is not None and dense.dtype == torch.bfloat16:
        write_(dense, values, rounding, offset)
    else:
        storage.write_(parts, values)


def slice_elements(device: torch.device) -> int:
    """Return how many elements of a weight a step treats at a time."""
    return SLICE_ELEMENTS_CPU if device_kind(device) == "cpu" else SLICE_ELEMENTS


def slices_of(weight: Tensor | Int8Weight) -> Iterator[tuple[int, int, Tensor | Int8Weight]]:
    """Yield (start, stop, part): flat slices, or rows of an int8 weight, that begin where a block of moments does."""
    elements = slice_elements(weight.device if isinstance(weight, Tensor) else weight.codes.device)
    if isinstance(weight, Tensor):
        flat = weight.view(-1)
        for start, stop in tiles(flat.numel(), elements):
            yield start, stop, flat[start:stop]
        return
    columns = weight.shape[1]
    for first, last in weight.row_tiles(elements, multiple=BLOCK_ELEMENTS // math.gcd(columns, BLOCK_ELEMENTS)):
        yield first * columns, last * columns, weight.rows(first, last)
