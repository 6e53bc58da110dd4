"""AdamW in one pass through the kernels of `featherweight.kernels`, where one runs and fits.

Moments in codes, float32 or bfloat16 are read, updated and written in one pass. A float32 weight, or a bfloat16 one
with stochastic rounding, is written in the same pass; for others the pass ends with the direction.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featherweight import kernels
from featherweight.optim.step.layout import Layout, Stored
from featherweight.optim.step.weight_update import Rounding, add_direction_, slices_of, write_factors
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.rounding import key_pairs
from featherweight.quant.storage import DynamicStorage, StateStorage

NAMES = ("exp_avg", "exp_avg_sq")
_TRITON_KINDS = ("codes8", "dense")
_NATIVE_KINDS = ("codes8", "codes4", "dense", "dense_bfloat16")


def kernel_for(layout: Layout, grad: Tensor, group: Mapping[str, Any]) -> Any:
    """Return the module whose kernels run AdamW on a gradient or core, or None.

    Raises:
        DeviceError: if Triton's kernels are switched on and cannot run where the gradient is.
    """
    if layout.rule != "adamw" or layout.dtype != torch.float32:
        return None
    kinds = {_kind(storage) for storage in layout.moments.values()}
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    is_known = kind in _NATIVE_KINDS and (kind != "dense_bfloat16" or group["stochastic_rounding"])
    if is_known and grad.dtype in (torch.float32, torch.bfloat16) and kernels.native_on(grad):
        return kernels.native
    return kernels.adamw if kind in _TRITON_KINDS and kernels.run_on(grad) else None


def words_for(kernel: Any) -> str:
    """Return what reports call a module of kernels."""
    return "C kernel" if kernel is kernels.native else "Triton kernel"


def direction(kernel: Any, stored: Stored, grad: Tensor, step: int, group: Mapping[str, Any]) -> Tensor:
    """Update stored moments and return the direction, as reading, `AdamWRule.direction` and writing do.

    Args:
        kernel: from `kernel_for`.
        stored: the moments; written in place.
        grad: as many elements, any float dtype. Not modified.
        step: number of this step, from 1.
        group: the parameter group with the rule's options.
    Returns:
        New float32 tensor of the shape of `grad`.
    """
    fused: Tensor = kernel.direction(grad, _moments(kernel, stored), _options(kernel, step, group))
    return fused


def step_(
    kernel: Any, weight: Tensor | Int8Weight, grad: Tensor, stored: Stored, step: int, group: Mapping[str, Any]
) -> None:
    """Update the moments and the weight of a parameter without a subspace.

    Args:
        kernel: from `kernel_for`.
        weight: contiguous; written in place.
        grad: of its shape.
        stored: the moments; written in place.
        step: number of this step, from 1.
        group: the parameter group with the rule's options.
    """
    (alpha, beta), rounding = write_factors(group), stored.rounding
    if _is_written_by_kernel(weight, rounding):
        write = kernel.Write(weight, alpha, beta, key_pairs(rounding.seed, rounding.key, rounding.step))
        kernel.step_(grad, _moments(kernel, stored), _options(kernel, step, group), write)
        return
    flat_grad = grad.reshape(-1)
    for start, stop, piece in slices_of(weight):
        moved = direction(kernel, stored.slice(start, stop), flat_grad[start:stop], step, group)
        add_direction_(piece, moved, alpha=alpha, beta=beta, rounding=rounding, offset=start)


def _is_written_by_kernel(weight: Tensor | Int8Weight, rounding: Rounding) -> bool:
    if isinstance(weight, Int8Weight):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and rounding.stochastic)


def _kind(storage: StateStorage) -> str:
    return f"codes{storage.bits}" if isinstance(storage, DynamicStorage) else storage.name


def _moments(kernel: Any, stored: Stored) -> tuple[Any, Any]:
    """Return both moments as a kernel takes them."""
    rounding = stored.rounding
    first, second = (
        _moment(
            kernel,
            stored.layout.moments[name],
            stored.parts[name],
            replace(rounding, tensor=rounding.tensor + number),
            stored.offset,
        )
        for number, name in enumerate(NAMES, 1)
    )
    return first, second


def _moment(kernel: Any, storage: StateStorage, parts: Mapping[str, Tensor], rounding: Rounding, offset: int) -> Any:
    if not isinstance(storage, DynamicStorage):
        dense = parts[""]
        if dense.dtype != torch.bfloat16:
            return dense
        return kernel.Rounded(dense, key_pairs(rounding.seed, rounding.key, rounding.step), offset)
    table = storage.table.on(parts["codes"].device)
    bits = (storage.bits,) if kernel is kernels.native else ()
    return kernel.Codes(
        *bits, parts["codes"], parts["block_scale"], table.values, table.first_code, table.next_boundary
    )


def _options(kernel: Any, step: int, group: Mapping[str, Any]) -> Any:
    return kernel.Options(*group["betas"], group["eps"], step, group["eps_mode"] == "official")
