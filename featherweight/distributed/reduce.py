"""Sums and means over processes: few collectives of many small tensors, in one order, with the bytes counted."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from featherweight.distributed.differences import of_gradients
from featherweight.distributed.turns import Turns
from featherweight.distributed.world import common
from featherweight.errors import ConfigError


@dataclass
class Traffic:
    """What a process has handed to collectives."""

    calls: int = 0
    """Number of collectives that carried tensors."""
    payload_bytes: Counter[str] = field(default_factory=Counter)
    """Bytes by kind of collective."""
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    """How often a tensor of a shape was sent."""

    def count(self, kind: str, tensors: Sequence[Tensor], sent_bytes: int) -> None:
        """Take note of a collective."""
        self.calls += 1
        self.payload_bytes[kind] += sent_bytes
        self.shapes.update(tuple(tensor.shape) for tensor in tensors)

    def forget(self) -> None:
        """Begin anew."""
        self.calls = 0
        self.payload_bytes.clear()
        self.shapes.clear()

    def wire_bytes(self, world_size: int) -> float:
        """Return what a rank sends at least: ``2 (W-1)/W`` of an all-reduce, ``(W-1)/W`` of its two halves."""
        share = (world_size - 1) / world_size
        factors = {"all_reduce": 2.0, "all_reduce_of_copies": 2.0}
        return sum(share * factors.get(kind, 1.0) * count for kind, count in self.payload_bytes.items())


class TorchReducer:
    """A reducer on `torch.distributed`, with a group of its own, so that its calls wait for no others.

    Building one is a collective: all processes of the group do it.

    Args:
        reduce_dtype: what floats below float64 are sent as; None for their own dtype.
        turns: of a sharded model, which has collectives of others, too; what comes next is then compared there.
    """

    def __init__(self, *, reduce_dtype: torch.dtype | None = None, turns: Turns | None = None) -> None:
        self.group = dist.new_group()
        self.reduce_dtype, self._turns = reduce_dtype, turns
        self.traffic = Traffic()
        """What has been sent since the object was made."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return dist.get_world_size(self.group)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """See `Reducer.mean_`: one collective for all tensors of one dtype and device."""
        for members in _by_kind(tensors):
            dtype = self._wire_dtype(members[0])
            if len(members) == 1 and members[0].dtype == dtype and members[0].is_contiguous():
                self._all_reduce(members[0], members)
                members[0].div_(self.world_size)
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in members]).to(dtype)
            self._all_reduce(flat, members)
            flat.div_(self.world_size)
            parts = flat.split([tensor.numel() for tensor in members])
            for tensor, part in zip(members, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes, in its own dtype."""
        self._all_reduce(tensor, [tensor])

    def all_reduce(self, tensor: Tensor, group: Mapping[str, Any]) -> None:
        """Replace a tensor by its mean; the older name of `mean_`, for one tensor."""
        self.mean_([tensor])

    def require_same(self, names: Sequence[str]) -> None:
        """See `Reducer.require_same`: one collective of 16 bytes; the names travel only if they differ."""
        if self._turns is not None:
            self._turns.meet("the updates of the optimizer", names)
            return
        digest = int.from_bytes(hashlib.sha256("\0".join(names).encode()).digest()[:7], "big")
        ends = torch.tensor([digest, -digest], dtype=torch.int64, device=self._device())
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=self.group)
        largest, smallest = ends.tolist()
        if largest == -smallest:
            return
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, list(names), group=self.group)
        raise common(ConfigError(of_gradients(everyone)))

    def _wire_dtype(self, tensor: Tensor) -> torch.dtype:
        if self.reduce_dtype is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor.dtype
        return self.reduce_dtype

    def _all_reduce(self, tensor: Tensor, members: Sequence[Tensor]) -> None:
        self.traffic.count("all_reduce", members, tensor.nbytes)
        dist.all_reduce(tensor, group=self.group)

    def _device(self) -> torch.device:
        return torch.device("cpu") if "gloo" in str(dist.get_backend_config(self.group)) else _current()


def _current() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group tensors by dtype and device, in the order in which they come: the same on all processes."""
    kinds: dict[Any, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        kinds[tensor.dtype, tensor.device].append(tensor)
    return list(kinds.values())
