"""What the processes of a device mesh do together for an optimizer of sharded rows, and what FSDP2 sends, counted.

A mesh has one dimension (every process holds other rows), or two: copies, and the processes that share one copy.
Sums over rows then go over the second; the mean of cores, of which every process has other data, goes over both.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from featherweight.distributed.reduce import Traffic
from featherweight.optim.sharding import ParameterShard


class MeshCollectives:
    """What optimizers ask of the processes of one mesh, through groups of its own. Building one is a collective.

    Args:
        mesh: of one dimension, or (copies, processes that share one).
        reduce_dtype: what cores below float64 are sent as; None for their own dtype.
    """

    def __init__(self, mesh: DeviceMesh, *, reduce_dtype: torch.dtype | None = None) -> None:
        self.mesh, self.reduce_dtype = mesh, reduce_dtype
        ranks = mesh.mesh.tolist() if mesh.ndim == 2 else [mesh.mesh.tolist()]
        self.group, _ = dist.new_subgroups_by_enumeration(ranks)
        self._copies: Any = None
        if mesh.ndim == 2:
            self._copies, _ = dist.new_subgroups_by_enumeration([list(column) for column in zip(*ranks, strict=True)])
        self.traffic = Traffic()
        """What optimizers have sent."""
        self.engine_traffic = Traffic()
        """What FSDP2 has sent: weights, and gradients that are formed."""

    @property
    def world_size(self) -> int:
        """Number of processes that share one copy."""
        return self.mesh.size(-1)

    @property
    def copies(self) -> int:
        """Number of copies."""
        return self.mesh.size() // self.world_size

    def shard(self, shape: tuple[int, ...]) -> ParameterShard:
        """Return which rows of a parameter this process holds, by the rule of ``torch.chunk``."""
        chunk, rank = -(-shape[0] // self.world_size), self.mesh.get_local_rank(self.mesh.ndim - 1)
        start, stop = (min(end * chunk, shape[0]) for end in (rank, rank + 1))
        return ParameterShard(shape, start, stop, self)

    def sum_(self, tensor: Tensor) -> None:
        """See `Collectives.sum_`."""
        self.traffic.count("all_reduce", [tensor], tensor.nbytes)
        dist.all_reduce(tensor, group=self.group)

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """See `Collectives.gather_rows`."""
        chunk = -(-total // self.world_size)
        padded = rows.new_zeros(chunk, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        self.traffic.count("all_gather", [padded], padded.nbytes * self.world_size)
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat(parts)[:total]

    def mean_rows(self, wholes: Sequence[Tensor]) -> list[Tensor]:
        """See `Collectives.mean_rows`."""
        by_dtype: dict[torch.dtype, list[int]] = defaultdict(list)
        for index, whole in enumerate(wholes):
            by_dtype[whole.dtype].append(index)
        found: dict[int, Tensor] = {}
        for dtype, members in by_dtype.items():
            rows = self._mean_rows([wholes[index] for index in members], self._wire_dtype(dtype))
            found |= dict(zip(members, rows, strict=True))
        return [found[index] for index in range(len(wholes))]

    def _mean_rows(self, wholes: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        count, rank = self.world_size, self.mesh.get_local_rank(self.mesh.ndim - 1)
        chunks = [-(-len(whole) // count) for whole in wholes]
        parts = []
        for whole, chunk in zip(wholes, chunks, strict=True):
            padded = whole if len(whole) == chunk * count else whole.new_zeros(chunk * count, *whole.shape[1:])
            if padded is not whole:
                padded[: len(whole)] = whole
            parts.append(padded.reshape(count, -1).to(dtype))
        sent = torch.cat(parts, dim=1).reshape(-1)
        kept = sent.new_empty(len(sent) // count)
        self.traffic.count("reduce_scatter", wholes, sent.nbytes)
        dist.reduce_scatter_single(kept, sent, group=self.group)
        if self._copies is not None:
            self.traffic.count("all_reduce_of_copies", [kept], kept.nbytes)
            dist.all_reduce(kept, group=self._copies)
        kept.div_(self.mesh.size())
        rows = []
        for whole, part in zip(wholes, kept.split([part.shape[1] for part in parts]), strict=True):
            chunk = -(-len(whole) // count)
            mine = max(0, min(chunk, len(whole) - rank * chunk))
            rows.append(part.view(chunk, *whole.shape[1:])[:mine].to(whole.dtype))
        return rows

    def _wire_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.reduce_dtype is None or dtype == torch.float64 else self.reduce_dtype

    def sums(self, values: Sequence[float]) -> list[float]:
        """See `Collectives.sums`."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.mesh.device_type)
        dist.all_reduce(tensor, group=self.group)
        return list(tensor.tolist())

    def all_true(self, flags: Sequence[bool]) -> list[bool]:
        """See `Collectives.all_true`."""
        found = torch.tensor(flags, dtype=torch.int32, device=self.mesh.device_type)
        dist.all_reduce(found, op=dist.ReduceOp.MIN, group=self.group)
        return [bool(flag) for flag in found.tolist()]

    def distribute(self, rows: Tensor, total: int) -> Tensor:
        """See `Collectives.distribute`."""
        shape = torch.Size((total, *rows.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        placements = [Shard(0)] if self.mesh.ndim == 1 else [Replicate(), Shard(0)]
        # Without shape and stride an uneven tensor is taken for an even one.
        return DTensor.from_local(rows, self.mesh, placements, run_check=False, shape=shape, stride=stride)


class _Counted:
    """What FSDP2 asks of a collective of its own choice, with the bytes counted."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for a collective."""
        return torch.empty(*size, dtype=dtype, device=device)


class CountedGather(_Counted):
    """FSDP2's gathering of weights."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Gather, as `torch.distributed.all_gather_single` does."""
        self.traffic.count("all_gather", [input_tensor], output_tensor.nbytes)
        return dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)


class CountedReduceScatter(_Counted):
    """FSDP2's sum of gradients."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        """Sum, as `torch.distributed.reduce_scatter_single` does."""
        self.traffic.count("reduce_scatter", [input_tensor], input_tensor.nbytes)
        return dist.reduce_scatter_single(output_tensor, input_tensor, group=group, op=op, async_op=async_op)
