"""Runs training code on tensors without memory, to learn what memory it would take.

Inside `simulation` every tensor is fake: it has a shape, a dtype and a storage with a size, and no elements. The code
that runs is the real one, from the loop to the optimizer, and a `StorageTracker` around it counts bytes that are never
allocated. Questions about elements get the answer of an ordinary step: numbers are finite, gradients are not zero,
nothing is out of range.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from featherweight.memory.attention import attention_on_cuda
from featherweight.memory.cost import StepCost
from featherweight.simulated import SimulatedDevice, counting_only

_aten = torch.ops.aten
_SMALL = 64
"""Whole numbers in tensors of at most so many elements keep their values: counters decide what a step does."""
_FACTORIES = frozenset({"aten::zeros", "aten::ones", "aten::full", "aten::empty", "aten::scalar_tensor"})


class Watcher(Protocol):
    """Sees every operator that the simulated code calls, as a dispatch mode around the simulation would."""

    def watch(self, run: Callable[..., Any], func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Return ``run(func, types, args, kwargs)``, or NotImplemented as a dispatch mode may."""


class SimulatedTensors(FakeTensorMode):
    """Fake tensors that answer questions about their elements as those of an ordinary step would.

    Args:
        cost: counts the work of the operators, or None.
    """

    def __init__(self, cost: StepCost | None = None) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.allow_meta = True  # the host memory beside a simulated GPU
        self.cost = cost
        self.watcher: Watcher | None = None
        """Takes the place of a second dispatch mode, which would double the time of an operator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (watcher := self.watcher) is None:
            return self._run(func, types, args, kwargs or {})
        self.watcher = None  # what an operator does inside is not its caller's
        try:
            return watcher.watch(self._run, func, types, args, kwargs or {})
        finally:
            self.watcher = watcher

    def _run(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.prim.device.default and type(args[0]) is FakeTensor:
            return args[0].fake_device
        written = _written_alone(func)
        target = None if written is None else args[0] if written == 0 else kwargs["out"]
        if type(target) is FakeTensor and target.constant is None:
            return self._counted(func, args, kwargs, target)  # of the same shape as before: nothing to find out
        tensors = [one for one in args if isinstance(one, Tensor)]
        lists = [one for value in args if isinstance(value, list | tuple) for one in value if isinstance(one, Tensor)]
        is_fake = any(type(one) is FakeTensor for one in (*tensors, *lists, *kwargs.values()))
        if is_fake and func is _aten._local_scalar_dense.default:
            return _ordinary_value(args[0])
        if func is _aten.randn.generator:
            drawn = torch.empty(args[0], dtype=kwargs.get("dtype"), device="meta")
            return self._counted(func, args, kwargs, FakeTensor(self, drawn, _CPU))
        if is_fake and func is _aten.nonzero.default:
            return torch.empty((0, args[0].ndim), dtype=torch.int64, device=args[0].device)
        if not is_fake and (func.namespace == "prim" or _keeps_values(func, tensors + lists, args, kwargs)):
            return func(*args, **kwargs)
        key = _key(func, args, kwargs, tensors + lists) if func in _MAKE else None
        if (result := self._as_before(key)) is None:
            result = self._shape_alone(func, args, kwargs)
            if result is None:
                result = super().__torch_dispatch__(func, types, args, kwargs)
            self._remember(key, result)
        return self._counted(func, args, kwargs, result)

    def _as_before(self, key: "_Key | None") -> Any:
        """Return what an operator makes that has had arguments of the same looks before; None if it has not."""
        if key is None or (looks := _known.get(key)) is None:
            return None
        shape, strides, dtype = looks
        return FakeTensor(self, torch.empty_strided(shape, strides, dtype=dtype, device="meta"), _CPU)

    def _remember(self, key: "_Key | None", made: Any) -> None:
        if key is not None and type(made) is FakeTensor and made.layout is torch.strided:
            if made.constant is None and made.fake_device == _CPU:
                if len(_known) == _MOST_KNOWN:
                    _known.clear()
                _known[key] = made.shape, made.stride(), made.dtype

    def _shape_alone(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FakeTensor | None:
        """Return the result of an operator that is known to make one tensor; the general way is ten times slower."""
        device = kwargs.get("device")
        if func not in _SHAPE_ALONE or (device is not None and torch.device(device).type != "cpu"):
            return None
        is_factory = not isinstance(args[0], Tensor) if args else True
        if is_factory != (func in _NEW):
            return None
        if not all(type(one) is FakeTensor and one.constant is None for one in args if isinstance(one, Tensor)):
            return None
        shape_kwargs = {name: value for name, value in kwargs.items() if name not in _PLACES}
        if is_factory:
            shape = func(*args, **shape_kwargs, device="meta")
        else:
            with in_kernel_invocation_manager(self):
                shape = func(*args, **shape_kwargs)
        return FakeTensor(self, shape, _CPU)

    def _counted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        if self.cost is not None:
            self.cost.add(func, args, kwargs, result)
        return result


def _overloads(names: str) -> frozenset[Any]:
    return frozenset(
        getattr(getattr(_aten, name), overload)
        for name in names.split()
        for overload in getattr(_aten, name).overloads()
        if "out" not in overload and "ames" not in overload and "generator" not in overload
    )


_Key = tuple[Any, ...]
_known: dict[_Key, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}
"""What operators have made, in this simulation and earlier ones: it depends on the key alone."""
_MOST_KNOWN = 1 << 16


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> _Key | None:
    """Return all that the looks of a new tensor depend on; None if an argument is not on the device or has values."""
    for one in tensors:
        if one.constant is not None if type(one) is FakeTensor else one.device != _CPU:
            return None
    return (func, torch.get_default_dtype(), *map(_looks, args), *map(_looks, kwargs.items()))


def _looks(value: Any) -> Any:
    """Return the looks of a tensor, or a value with its type: 1, 1.0 and True are equal and not alike."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.layout
    if isinstance(value, list | tuple):
        return tuple(map(_looks, value))
    return type(value), value


_NEW = _overloads("empty zeros ones full arange randn")
_VIEWS = _overloads("view slice transpose select detach alias t unsqueeze expand permute as_strided _unsafe_view")
_MAKE = _overloads(
    "clone _to_copy add sub mul div mm abs neg sqrt rsqrt pow floor clamp maximum where eq gt lt le ne silu log "
    "amax amin any all argmax linalg_vector_norm flip gather index_select masked_fill "
    "bitwise_and bitwise_or bitwise_not bitwise_right_shift __rshift__ __lshift__ "
    "empty_like zeros_like full_like new_empty new_zeros"
)
"""Operators that make one new tensor, whose shape, strides and type follow from those of the arguments."""
_SHAPE_ALONE = _NEW | _VIEWS | _MAKE
_MAKE |= _overloads("cat stack sum mean embedding slice_backward silu_backward")
_PLACES = frozenset({"device", "pin_memory", "layout", "non_blocking"})
_CPU = torch.device("cpu")


@cache
def _written_alone(func: Any) -> int | str | None:
    """Return which argument an operator writes, if its shape stays and it makes nothing else: 0, "out" or None."""
    schema = func._schema
    if func.namespace != "aten" or len(schema.returns) != 1 or torch.Tag.inplace_view in func.tags:
        return None
    written = [one for one in schema.arguments if one.alias_info is not None and one.alias_info.is_write]
    name = schema.name.partition("::")[2]
    if len(written) != 1 or str(written[0].type) != "Tensor" or name in _CHANGE_SHAPE:
        return None
    if written[0].name == "out" and written[0].kwarg_only:
        return "out"
    return 0 if written[0] is schema.arguments[0] or name.endswith("_") else None


_CHANGE_SHAPE = frozenset({"resize_", "resize_as_", "set_", "requires_grad_"})


def _ordinary_value(scalar: FakeTensor) -> bool | int | float:
    if scalar.constant is not None:
        return scalar.constant.item()
    if scalar.dtype == torch.bool:
        return True
    return 1.0 if scalar.dtype.is_floating_point else 1


def _keeps_values(func: Any, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether an operator makes, or works on, a few whole numbers."""
    if tensors:
        return all(one.numel() <= _SMALL and not one.is_floating_point() for one in tensors)
    if func._schema.name not in _FACTORIES or kwargs.get("dtype") not in (torch.int64, torch.int32, torch.bool):
        return False
    count = 1
    for length in args[0] if args and isinstance(args[0], list | tuple) else ():
        count *= length
    return count <= _SMALL


@contextmanager
def simulation(device: SimulatedDevice, cost: StepCost | None = None) -> Iterator[SimulatedTensors]:
    """Make every tensor of the block fake.

    Args:
        device: whose step is simulated. The tensors say that they are on the CPU, as a build of torch without CUDA has
            no others; code that differs by the kind of device follows this one.
        cost: counts the work of the operators, or None.
    """
    from transformers import masking_utils

    with ExitStack() as stack:
        stack.enter_context(counting_only(device))
        # It would look at fake position ids and, as it cannot, make an (L, L) mask that a real step does without.
        stack.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None))
        if device.kind == "cuda":
            attention = partial(attention_on_cuda, cost)
            stack.enter_context(patch.object(torch.nn.functional, "scaled_dot_product_attention", attention))
        yield stack.enter_context(SimulatedTensors(cost))
