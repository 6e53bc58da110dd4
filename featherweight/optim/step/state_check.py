"""What is compared before a step: the parameter with its plan, its gradient and its state.

Kernels believe the sizes that they are given. A parameter that has got more rows since its state was created
(`model.resize_token_embeddings` does so in place), or lies on another device, would make one write beyond the moments;
so nothing reaches a kernel that was not compared here: a few attributes for each parameter, about a microsecond.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from featherweight.errors import ConfigError, DeviceError, ShapeError
from featherweight.optim.state import State, parts_of
from featherweight.optim.step.layout import Layout
from featherweight.simulated import simulated_device


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
        device = _device_of(layout, state)
        if device is not None and device != parameter.device:
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


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic of a parameter: float64 for double precision, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def _device_of(layout: Layout, state: Mapping[str, Tensor]) -> torch.device | None:
    for name in layout.moments:
        for part in parts_of(state, name, None).values():
            return part.device
    return None
