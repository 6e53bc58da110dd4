"""Runs training code on tensors without memory, to learn what memory it would take.

Inside `simulation` every tensor is fake: it has a shape, a dtype and a storage with a size, and no elements. The code
that runs is the real one, from the loop to the optimizer, and a `StorageTracker` around it counts bytes that are never
allocated. Questions about elements get the answer of an ordinary step: numbers are finite, gradients are not zero,
nothing is out of range.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from featherweight.tiles import Device, counting_only

_aten = torch.ops.aten
SMALL = 64
"""Whole numbers in tensors of at most so many elements keep their values: counters decide what a step does."""


class SimulatedTensors(FakeTensorMode):
    """Fake tensors that answer questions about their elements as those of an ordinary step would.

    Args:
        device: whose memory is simulated.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.allow_meta = True  # the host memory beside a simulated GPU
        self.target = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        is_fake = any(isinstance(one, FakeTensor) for one in tensors)
        if is_fake and func is _aten._local_scalar_dense.default:
            return _ordinary_value(tensors[0])
        if is_fake and func is _aten.nonzero.default:
            return torch.empty((0, tensors[0].ndim), dtype=torch.int64, device=tensors[0].device)
        if not is_fake and (func.namespace == "prim" or _keeps_values(func, tensors, args, kwargs)):
            return func(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _ordinary_value(scalar: FakeTensor) -> bool | int | float:
    if scalar.constant is not None:
        return scalar.constant.item()
    if scalar.dtype == torch.bool:
        return True
    return 1.0 if scalar.dtype.is_floating_point else 1


_FACTORIES = frozenset({"aten::zeros", "aten::ones", "aten::full", "aten::empty", "aten::scalar_tensor"})


def _keeps_values(func: Any, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether an operator makes, or works on, a few whole numbers."""
    if tensors:
        return all(one.numel() <= SMALL and not one.is_floating_point() for one in tensors)
    if func._schema.name not in _FACTORIES or kwargs.get("dtype") not in (torch.int64, torch.int32, torch.bool):
        return False
    size = args[0] if args and isinstance(args[0], list | tuple) else ()
    count = 1
    for length in size:
        count *= length
    return count <= SMALL


@contextmanager
def simulation(device: Device) -> Iterator[SimulatedTensors]:
    """Make every tensor of the block fake.

    Args:
        device: whose step is simulated. The tensors say that they are on the CPU; code that differs by the kind of device
            follows this one.
    """
    from transformers import masking_utils

    with ExitStack() as stack:
        stack.enter_context(counting_only(device))
        # It would look at fake position ids and, as it cannot, make an (L, L) mask that a real step does without.
        stack.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None))
        yield stack.enter_context(SimulatedTensors(device))
