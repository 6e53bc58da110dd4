"""AdamW through the kernels of `featherweight.kernels`, where they are switched on and fit.

Moments in 8-bit codes or float32 are read, updated and written in one pass. A float32 weight, or a bfloat16 one with
stochastic rounding, is written in the same pass; for others the pass ends with the direction.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight import kernels
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.weight_update import Rounding, add_direction_, slices_of
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.rounding import key_pairs
from featherweight.quant.storage import DynamicStorage, StateStorage

Parts = Mapping[str, Mapping[str, Tensor]]
NAMES = ("exp_avg", "exp_avg_sq")


def fits(layout: Layout, grad: Tensor) -> bool:
    """Say whether a kernel runs AdamW on a gradient or core.

    Raises:
        DeviceError: if kernels are switched on and cannot run where the gradient is.
    """
    is_plain = layout.rule == "adamw" and layout.dtype == torch.float32 and layout.tensor is None
    kept = [_kind(storage) for storage in layout.moments.values()]
    return is_plain and kept in (["codes"] * 2, ["dense"] * 2) and kernels.run_on(grad)


def direction(layout: Layout, parts: Parts, grad: Tensor, step: int, group: Mapping[str, Any]) -> Tensor:
    """Update stored moments and return the direction, as reading, `AdamWRule.direction` and writing do.

    Args:
        layout: one that `fits`.
        parts: of each moment; written in place.
        grad: as many elements, any float dtype. Not modified.
        step: number of this step, from 1.
        group: the parameter group with the rule's options.
    Returns:
        New float32 tensor of the shape of `grad`.
    """
    fused: Tensor = kernels.adamw.direction(grad, _moments(layout, parts), _options(step, group))
    return fused


def step_(
    weight: Tensor | Int8Weight,
    grad: Tensor,
    layout: Layout,
    parts: Parts,
    step: int,
    group: Mapping[str, Any],
    rounding: Rounding,
    *,
    alpha: float,
    beta: float,
) -> None:
    """Update the moments and the weight of a parameter without a subspace.

    Args:
        weight: contiguous; written in place.
        grad: of its shape.
        layout: one that `fits`.
        parts: of each moment; written in place.
        step: number of this step, from 1.
        group: the parameter group with the rule's options.
        rounding: of the weight.
        alpha: factor of the direction.
        beta: factor of the weight.
    """
    if _is_written_by_kernel(weight, rounding):
        keys = key_pairs(rounding.seed, rounding.key, rounding.step)
        write = kernels.adamw.Write(weight, alpha, beta, keys)
        kernels.adamw.step_(grad, _moments(layout, parts), _options(step, group), write)
        return
    flat_grad = grad.reshape(-1)
    for start, stop, piece in slices_of(weight):
        stored = {name: layout.moments[name].slice(parts[name], start, stop) for name in parts}
        moved = direction(layout, stored, flat_grad[start:stop], step, group)
        add_direction_(piece, moved, alpha=alpha, beta=beta, rounding=rounding, offset=start)


def _is_written_by_kernel(weight: Tensor | Int8Weight, rounding: Rounding) -> bool:
    if isinstance(weight, Int8Weight):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and rounding.stochastic)


def _kind(storage: StateStorage) -> str:
    if isinstance(storage, DynamicStorage):
        return "codes" if storage.bits == 8 else "packed"
    return storage.name


def _moments(layout: Layout, parts: Parts) -> tuple[Any, Any]:
    """Return both moments as the kernels take them."""
    first, second = (_moment(layout.moments[name], parts[name]) for name in NAMES)
    return first, second


def _moment(storage: StateStorage, parts: Mapping[str, Tensor]) -> Any:
    if not isinstance(storage, DynamicStorage):
        return parts[""]
    codes = parts["codes"]
    table = storage.table.on(codes.device)
    return kernels.adamw.Codes(codes, parts["block_scale"], table.values, table.first_code, table.next_boundary)


def _options(step: int, group: Mapping[str, Any]) -> Any:
    return kernels.adamw.Options(*group["betas"], group["eps"], step, group["eps_mode"] == "official")
