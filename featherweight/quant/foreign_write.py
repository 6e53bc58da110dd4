"""What keeps code that knows nothing of int8 weights from writing where they have no memory.

A handle (`featherweight.quant.int8_weight`) has a shape and one element of memory. A kernel that trusts the shape, as
torch's fused optimizers do, would write far beyond it. Two barriers stand before that, each enough by itself:

- `watch_optimizers` looks at every `torch.optim.Optimizer` before its step (`featherweight.every_step`).
- `ValuelessTensor` is asked by torch before each function that is called with it, and refuses those that write into
  it and those that hand out its address: functions of lists, fused ones, custom operators, wherever they come from.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from featherweight.errors import ConfigError
from featherweight.every_step import before_every_step

WRITES_INT8 = "writes_int8_weights"
"""Class attribute of the optimizers that write codes."""

_FACTS = frozenset(
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "grad", "requires_grad", "is_leaf", "grad_fn", "layout", "ndim", "is_meta")
)
"""Asked so often that they skip all questions."""

_HARMLESS = frozenset({"requires_grad_", "share_memory_"})
"""End like functions that write values, and write none."""

_ELSEWHERE = (
    "Train with an optimizer of fw.optim, write values with load_state_dict, or call fw.remove(model, fw.Int8()) first "
    "(averages of weights, and accelerate's dispatch_model and offloading, need that too)."
)

_ADDRESSES = frozenset({"data_ptr", "const_data_ptr", "mutable_data_ptr", "__dlpack__"})


class ValuelessTensor(Tensor):
    """A tensor that may be read, as NaN, and never written; so may every view of it."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch unless it would write into a tensor without memory, or learn its address.

        Raises:
            ConfigError: if it would.
        """
        kwargs = kwargs or {}
        if func not in _FACTS:
            _refuse_write(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            return result if func in _FACTS else _marked(result, args)


def watch_optimizers() -> None:
    """Look at every optimizer before its step from now on; once for the process."""
    before_every_step(_refuse_foreign_step)


def _refuse_foreign_step(optimizer: Optimizer, has_closure: bool) -> None:
    if getattr(type(optimizer), WRITES_INT8, False):
        return
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            if not isinstance(parameter, ValuelessTensor):
                continue
            if parameter.grad is not None or (has_closure and parameter.requires_grad):
                names = group.get("param_names")
                name = f"'{names[index]}' " if names else ""
                raise ConfigError(
                    f"{type(optimizer).__name__}.step: {name}{tuple(parameter.shape)} is an int8 weight, whose codes "
                    "this optimizer cannot write; expected an optimizer of fw.optim. Take one (fw.optim.AdamW for "
                    "example), freeze the weight, or call fw.remove(model, fw.Int8()) first."
                )


def _refuse_write(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    name = getattr(func, "__name__", "")
    if name == "to" and isinstance(args[0], ValuelessTensor):
        _refuse_meta(args[0], (*args[1:], *kwargs.values()))
    schemas = _schemas(func)
    if schemas is not None:
        written: Iterable[Any] = [value for schema in schemas for value in _written(schema, args, kwargs)]
    elif name.startswith("_fused_"):
        written = [*args, *kwargs.values()]
    elif name in _ADDRESSES or _is_in_place(name):
        written = args[:1] or list(kwargs.values())[:1]
    else:
        written = ()
    for value in (*written, kwargs.get("out")):
        if any(isinstance(one, ValuelessTensor) for one in _flat(value)):
            verb = "would hand out the address of" if name in _ADDRESSES else "would write into"
            raise ConfigError(
                f"int8 weight: '{name}' {verb} a handle, which has a shape and no values; expected code that writes "
                f"the weight's codes. {_ELSEWHERE}"
            )


def _refuse_meta(handle: Tensor, targets: Iterable[Any]) -> None:
    """Refuse to send a handle alone to the meta device: who does that looks for its values later, and finds none."""
    if handle.device.type != "meta" and any(
        isinstance(one, str | torch.device) and torch.device(one).type == "meta" for one in targets
    ):
        raise ConfigError(
            "int8 weight: 'to' would move a handle to the meta device and leave its codes behind; expected the module "
            f"to move as a whole. {_ELSEWHERE}"
        )


def _is_in_place(name: str) -> bool:
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in _READING_DUNDERS)
    return name.endswith("_") and name not in _HARMLESS


_READING_DUNDERS = frozenset({"__invert__", "__index__", "__int__", "__iter__", "__init__", "__init_subclass__"})


def _schemas(func: Any) -> list[Any] | None:
    """Return what an operator says of its arguments; None for functions that say nothing."""
    if isinstance(func, torch._ops.OpOverload):
        return [func._schema]
    if isinstance(func, torch._ops.OpOverloadPacket):
        return [getattr(func, name)._schema for name in func.overloads()]
    return None


def _written(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterable[Any]:
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[index] if index < len(args) else kwargs.get(argument.name)


def _flat(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _marked(result: Any, args: Sequence[Any]) -> Any:
    """Return the results of a function, those that are views of a tensor without memory as such."""
    if type(result) is Tensor:
        return result.as_subclass(ValuelessTensor) if _is_view(result, args) else result
    if type(result) in (list, tuple) and any(type(one) is Tensor for one in result):
        return type(result)(_marked(one, args) for one in result)
    return result


def _is_view(result: Tensor, args: Sequence[Any]) -> bool:
    if result.layout != torch.strided or not any(stride == 0 for stride in result.stride()) and result.numel() > 1:
        return False
    storage = result.untyped_storage()._cdata
    return any(
        isinstance(one, ValuelessTensor) and one.untyped_storage()._cdata == storage
        for value in args
        for one in _flat(value)
    )
