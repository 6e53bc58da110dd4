"""What is looked at before a step: whether parameter, plan, gradient and state belong together, and are finite.

Kernels believe the sizes that they are given. A parameter that has got more rows since its state was created
(`model.resize_token_embeddings` does so in place), or lies on another device, would make one write beyond the moments;
so nothing reaches a kernel that was not compared here: a few attributes for each parameter, about a microsecond.

A gradient can be used if it has no NaN, no infinity, and no square that leaves float32.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from featherweight.errors import ConfigError, DeviceError, ShapeError
from featherweight.optim.step.layout import Layout, State, compute_dtype, parts_of
from featherweight.simulated import device_kind, simulated_device
from featherweight.tiles import tiles

LARGEST = 1e18
"""Magnitude from which squares, summed over a few entries, leave float32."""
TILE_ELEMENTS = 1 << 20


def check_step(where: str, layout: Layout | None, parameter: Tensor, grad: Tensor | None, state: State) -> None:
    """Refuse a step in which parameter, gradient, plan and state do not belong together.

    Args:
        where: name of the optimizer, for messages.
        layout: plan of the parameter; None if there is none.
        parameter: what is to be updated.
        grad: its gradient, if there is one as a whole.
        state: its state; empty before the first step.
    Raises:
        ConfigError: for a parameter without a plan, or one whose dtype asks for another arithmetic.
        ShapeError: for another shape of the parameter or the gradient.
        DeviceError: for a parameter without values, or on another device than its state.
    """
    if layout is None:
        raise ConfigError(
            f"{where}: params hold {tuple(parameter.shape)}, which was put into a group by hand; expected parameters "
            "that the optimizer was built with. Use add_param_group, or fw.optim.adopt_new_rows(optimizer, model)."
        )
    if parameter.shape != layout.shape:
        raise ShapeError(
            f"{where}: '{layout.name}' has shape {tuple(parameter.shape)}; expected {layout.shape}, that of its state. "
            "If rows were appended call fw.optim.adopt_new_rows(optimizer, model), else build a new optimizer."
        )
    if grad is not None and grad.shape != parameter.shape:
        raise ShapeError(
            f"{where}: '{layout.name}' {tuple(parameter.shape)} has a gradient of shape {tuple(grad.shape)}; expected "
            "the same. Call zero_grad() before the backward pass after a change of shape."
        )
    if compute_dtype(parameter.dtype) != layout.dtype:
        raise ConfigError(
            f"{where}: '{layout.name}' is {parameter.dtype} and its state was made for {layout.dtype}; expected a "
            "dtype with the same arithmetic. Build a new optimizer after such a change."
        )
    if parameter.is_meta and simulated_device() is None:
        raise DeviceError(
            f"{where}: '{layout.name}' {layout.shape} is on the meta device and has no values; expected a device with "
            "memory. Load the weights first, for example with model.to_empty(device=...) and load_state_dict."
        )
    if state:
        parts = next((parts for name in layout.moments if (parts := parts_of(state, name))), {})
        device = next((part.device for part in parts.values()), parameter.device)
        if device != parameter.device:
            raise DeviceError(
                f"{where}: '{layout.name}' is on {parameter.device} and its state on {device}; expected one device. "
                "Move the model before its first step, or call optimizer.load_state_dict(optimizer.state_dict())."
            )


def check_fused(parameters: Sequence[Tensor], grads: Sequence[Tensor], moments: Sequence[Sequence[Tensor]]) -> None:
    """Compare all that a fused kernel of torch is about to get: shapes, dtypes, devices and strides.

    Args:
        parameters: float, contiguous.
        grads: of each.
        moments: lists of one moment of each.
    Raises:
        ShapeError: if anything differs from its parameter.
    """
    for index, parameter in enumerate(parameters):
        shape, dtype, device = parameter.shape, parameter.dtype, parameter.device
        for one in (grads[index], *(each[index] for each in moments)):
            if one.shape != shape or one.dtype != dtype or one.device != device or not one.is_contiguous():
                raise ShapeError(
                    f"optimizer: a gradient or moment {tuple(one.shape)} {one.dtype} on {one.device} stands beside a "
                    f"parameter {tuple(shape)} {dtype} on {device}; expected the same, contiguous. Do not write into "
                    "optimizer.state; load a state with load_state_dict."
                )


class Size(NamedTuple):
    """How large a tensor is, and whether a step may use it."""

    squared_norm: float
    """Squared Euclidean norm, from float64 where float32 does not hold it."""
    is_usable: bool
    """See `is_usable`."""


def sizes_of(tensors: Sequence[Tensor], flags: Sequence[Tensor] = ()) -> tuple[list[Size], list[bool]]:
    """Return the size of each tensor and the values of some flags, with one wait for the device.

    A norm of zero, or one near the ends of float32, is taken again in float64, at a wait for each.

    Args:
        tensors: any shapes and float dtypes, on one device.
        flags: boolean tensors on the same device.
    Returns:
        Sizes, and the elements of all flags one after another.
    """
    dtypes = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
    norms = [norm_of(one) for one in tensors]
    # Apple's GPUs know no float64, in which alone the norms of float64 gradients would keep their digits.
    wide = torch.float32 if all(norm.device.type == "mps" for norm in norms) else torch.float64
    parts = [*(norm.to(wide).reshape(1) for norm in norms), *(flag.reshape(-1).to(wide) for flag in flags)]
    values = torch.cat(parts).tolist() if parts else []
    sizes = [_size(*each) for each in zip(tensors, dtypes, values[: len(tensors)], strict=True)]
    return sizes, [value != 0 for value in values[len(tensors) :]]


def norm_of(tensor: Tensor) -> Tensor:
    """Return the Euclidean norm of all elements as a 0-d tensor, float32 or float64.

    On a CPU a 16-bit tensor is read in tiles: as a whole it would be copied to float32 first, which was measured to
    take 15 times as long.
    """
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    whole = tensor.dtype == dtype or device_kind(tensor.device) != "cpu" or not tensor.is_contiguous()
    if whole or tensor.numel() <= TILE_ELEMENTS:
        return torch.linalg.vector_norm(tensor, dtype=dtype)
    flat = tensor.view(-1)
    parts = [torch.linalg.vector_norm(flat[a:b], dtype=dtype) for a, b in tiles(flat.numel(), TILE_ELEMENTS)]
    return torch.linalg.vector_norm(torch.stack(parts))


def _size(tensor: Tensor, dtype: torch.dtype, norm: float) -> Size:
    if math.isnan(norm):
        return Size(norm, False)
    if dtype == torch.float32 and not 1e-15 < norm < 1e15:  # squares may have left float32 on the way
        exact = tensor.cpu() if tensor.device.type == "mps" else tensor
        norm = float(torch.linalg.vector_norm(exact, dtype=torch.float64))
    squared = norm * norm
    return Size(squared, norm < LARGEST or (math.isfinite(squared) and is_usable(tensor)))


def is_usable(grad: Tensor) -> bool:
    """Say whether a gradient or core is finite, and small enough that its squares are.

    A second moment of infinity would stop a weight for good.
    """
    limit = LARGEST**8 if grad.dtype == torch.float64 else LARGEST
    return bool((grad.abs() < limit).all())


def are_finite(
    grads: Sequence[Tensor], flags: Sequence[Tensor | None] | None = None
) -> tuple[list[bool], list[list[bool] | None]]:
    """Say for each gradient whether it is finite, and read flags that belong to it, with one wait for each device.

    Args:
        grads: any devices.
        flags: for each gradient a boolean vector on its device, or None.
    Returns:
        For each gradient whether it is finite, and its flags.
    """
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, grad in enumerate(grads):
        if grad.numel():
            by_device[grad.device].append(index)
    finite = [True] * len(grads)
    read: list[list[bool] | None] = [None] * len(grads)
    for members in by_device.values():
        # A finite norm proves finite entries and is 40 times faster on a CPU than looking at each; an infinite one may
        # be an overflow of huge but finite entries, so only then they are looked at.
        norms = torch._foreach_norm([grads[i] for i in members])
        flagged = [(i, flag) for i in members if flags is not None and (flag := flags[i]) is not None]
        is_finite = torch.stack([norm.float() for norm in norms]).isfinite()
        values = iter(torch.cat([is_finite, *(flag for _, flag in flagged)]).tolist())
        for index in members:
            finite[index] = next(values)
        for index, flag in flagged:
            read[index] = [next(values) for _ in range(flag.numel())]
        for index in members:
            finite[index] = finite[index] or is_usable(grads[index])
    return finite, read
