"""Modules whose weight is int8: where codes and scales live, and how they move, copy, save and load.

Codes and scales are buffers, `weight_codes` and `weight_scale`; `weight` stays a parameter, but only as a handle (see
`featherweight.quant.int8_weight`). A state dict holds the buffers and no `weight`; a module also loads an ordinary
checkpoint, whose float weight it quantises. A module can share the weight of another one, as an output head that is
tied to an embedding does: then it has the same handle and no buffers of its own.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from featherweight.errors import ConfigError
from featherweight.quant.int8_weight import (
    GROUP_SIZE,
    Int8Handle,
    Int8Weight,
    forget_int8_weight,
    handle_data,
    is_registered,
    register_int8_weight,
)
from featherweight.unwrap import is_distributed, local_of

CODES, SCALE = "weight_codes", "weight_scale"


class Int8Module(nn.Module):
    """Base of the modules with an int8 weight; not used by itself."""

    weight: Tensor
    group_size: int
    _weight_owner: tuple["Int8Module", ...]
    """The module that holds codes and scales; empty if it is this one. In a tuple, so that it is no submodule."""

    def int8_weight(self) -> Int8Weight:
        """Return references to the present codes and scales."""
        owner = self._weight_owner[0] if self._weight_owner else self
        codes, scale = (local_of(owner._stored(name)) for name in (CODES, SCALE))
        # No view without need: a graph that holds this must follow a buffer whose memory is exchanged.
        scale = scale if scale.dtype == torch.float32 else scale.view(torch.float32)
        return Int8Weight(codes, scale, owner.group_size)

    def _stored(self, name: str) -> Tensor:
        """Return codes or scale bits: a buffer, or a parameter without gradient once `store_as_parameters_` was called.

        As a parameter it is the rows of this process, or all of them while FSDP2 has gathered them.
        """
        found = self._buffers[name] if name in self._buffers else self._parameters[name]
        assert found is not None
        return found

    def store_as_parameters_(self) -> None:
        """Make codes and scales parameters without gradient, which FSDP2 shards; scales as the integers of their bits.

        A policy of mixed precision casts floating parameters before it gathers them; scales would lose their digits.
        """
        if not self._weight_owner:
            codes, scale = self._stored(CODES), self._stored(SCALE)
            del self._buffers[CODES], self._buffers[SCALE]
            self.register_parameter(CODES, nn.Parameter(codes, requires_grad=False))
            self.register_parameter(SCALE, nn.Parameter(scale.view(torch.int32), requires_grad=False))

    def adopt_weight_(self, group_size: int = GROUP_SIZE, owner: "Int8Module | None" = None) -> None:
        """Turn the float parameter `weight` into codes and a handle; the parameter stays the same object.

        Args:
            group_size: elements of a row that share a scale.
            owner: a module with the same parameter whose codes this one shares, or None.
        """
        parameter: Any = self._parameters["weight"]
        self._weight_owner = () if owner is None else (owner,)
        self.group_size = group_size if owner is None else owner.group_size
        if owner is None:
            int8 = Int8Weight.quantize(parameter, group_size)
            parameter.data = handle_data(parameter.shape, parameter.dtype, parameter.device)
            if not isinstance(parameter, FakeTensor):  # whose class is what makes it one
                parameter.__class__ = Int8Handle
            self.register_buffer(CODES, int8.codes)
            self.register_buffer(SCALE, int8.block_scale)
            register_int8_weight(parameter, self)

    def release_weight_(self) -> None:
        """Turn codes and handle back into a float parameter, the same object; an owner does so for all who share it."""
        parameter: Any = self._parameters["weight"]
        if not self._weight_owner:
            parameter.data = self.int8_weight().dequantize(parameter.dtype)
            parameter.__class__ = nn.Parameter
            forget_int8_weight(parameter)
            del self._buffers[CODES], self._buffers[SCALE]
        del self._weight_owner, self.group_size

    # ---- moving and copying

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move codes and scales without a change of their dtypes; the handle follows device and dtype."""
        owned = {name: self._buffers[name] for name in (CODES, SCALE) if name in self._buffers}
        handle = self._parameters["weight"]
        self._buffers.update(dict.fromkeys(owned))
        self._parameters["weight"] = None
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(owned)
            self._parameters["weight"] = handle
        for name, buffer in owned.items():
            assert buffer is not None
            moved = fn(buffer)
            self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        self._move_handle(fn)
        return self

    def _move_handle(self, fn: Callable[[Tensor], Tensor]) -> None:
        if self._weight_owner:
            owner = self._weight_owner[0]
            owner._move_handle(fn)
            self._parameters["weight"] = owner._parameters["weight"]
            return
        handle = self._parameters["weight"]
        assert handle is not None
        probe = fn(torch.zeros(1, dtype=handle.dtype, device=handle.device))
        dtype = probe.dtype if probe.is_floating_point() else handle.dtype
        if (dtype, probe.device) != (handle.dtype, handle.device):
            self._set_handle(dtype, probe.device, None if handle.grad is None else fn(handle.grad))

    def _set_handle(self, dtype: torch.dtype, device: torch.device, grad: Tensor | None) -> None:
        """Give the handle another dtype or device; the object stays wherever torch allows it."""
        handle: Any = self._parameters["weight"]
        data = handle_data(handle.shape, dtype, device)
        if torch._has_compatible_shallow_copy_type(handle, data):
            handle.grad = None
            handle.data = data
        else:  # from the meta device: torch makes new parameters there too
            handle = Int8Handle(data, requires_grad=handle.requires_grad)
            self._parameters["weight"] = handle
            register_int8_weight(handle, self)
        handle.grad = grad

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        handle = self._parameters["weight"]
        # After a deep copy or a pickle; the original of a shallow copy keeps its handle.
        if not self._weight_owner and handle is not None and not is_registered(handle):
            register_int8_weight(handle, self)

    # ---- saving and loading

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}weight"]
        if f"{prefix}{SCALE}" in destination:
            destination[f"{prefix}{SCALE}"] = _as_floats(destination[f"{prefix}{SCALE}"])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}weight"
        given = state_dict.pop(key, None)
        if given is not None:
            if tuple(given.shape) != tuple(self.weight.shape) or not given.is_floating_point():
                error_msgs.append(
                    f"size mismatch for {key}: copying a {given.dtype} of shape {tuple(given.shape)} from checkpoint, "
                    f"the int8 weight has shape {tuple(self.weight.shape)}."
                )
            elif self._weight_owner:
                self.int8_weight().write_(given.to(self.int8_weight().codes.device))
            elif f"{prefix}{CODES}" not in state_dict:
                int8 = Int8Weight.quantize(given, self.group_size)
                state_dict[f"{prefix}{CODES}"], state_dict[f"{prefix}{SCALE}"] = int8.codes, int8.block_scale
        arguments = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if key in missing_keys:
            missing_keys.remove(key)  # the handle has no values
        if not self._weight_owner:
            device = self.int8_weight().codes.device
            if device != self.weight.device:  # buffers that were assigned
                self._set_handle(self.weight.dtype, device, None)

    def require_handle(self) -> None:
        """Refuse a weight that somebody has replaced by values, which nothing would read.

        Raises:
            ConfigError: if it was.
        """
        if any(self.weight.stride()):
            raise ConfigError(
                f"{type(self).__name__}: weight={tuple(self.weight.shape)} was replaced by float values, but this "
                "module computes with its int8 codes; expected the handle. Write values with load_state_dict, or call "
                "fw.remove(model, fw.Int8()) before you merge or assign."
            )


def _as_floats(scale: Any) -> Tensor:
    """Return scales as the numbers that their bits are; of a DTensor one over the same memory."""
    if not is_distributed(scale):
        return scale.view(torch.float32)
    local, shape, stride = scale.to_local().view(torch.float32), scale.shape, scale.stride()
    found: Tensor = type(scale).from_local(
        local, scale.device_mesh, scale.placements, run_check=False, shape=shape, stride=stride
    )
    return found
