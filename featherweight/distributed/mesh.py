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

from featherweight.distributed.group import new_group
from featherweight.distributed.reduce import Traffic
from featherweight.distributed.turns import Turns
from featherweight.optim.sharding import ParameterShard, share_of


class MeshCollectives:
    """What optimizers ask of the processes of one mesh, through groups of its own. Building one is a collective.

    Args:
        mesh: of one dimension, or (copies, processes that share one).
        turns: where all processes of the model compare what comes next.
        reduce_dtype: what cores below float64 are sent as; None for their own dtype.
    """

    def __init__(self, mesh: DeviceMesh, turns: Turns, *, reduce_dtype: torch.dtype | None = None) -> None:
        self.mesh, self.reduce_dtype, self._turns = mesh, reduce_dtype, turns
        ranks = mesh.mesh.tolist() if mesh.ndim == 2 else [mesh.mesh.tolist()]
        self.group = new_group(ranks)
        self._copies: Any = None
        if mesh.ndim == 2:
            self._copies = new_group(list(zip(*ranks, strict=True)))
        self.traffic = Traffic()
        """What optimizers have sent."""
        self.engine_traffic = Traffic()
        """What FSDP2 has sent: weights, and gradients that are formed."""

    @property
    def world_size(self) -> int:
        """Number of processes that share one copy."""
        return self.mesh.size(-1)

    @property
    def position(self) -> int:
        """Which of them this one is, from 0."""
        return self.mesh.get_local_rank(self.mesh.ndim - 1)

    @property
    def copies(self) -> int:
        """Number of copies."""
        return self.mesh.size() // self.world_size

    def shard(self, shape: tuple[int, ...], axis: int = 0, *, shares_bases: bool = False) -> ParameterShard:
        """Return which rows (or columns) of a parameter this process holds, by the rule of ``torch.chunk``."""
        bounds = share_of(shape[axis], self.world_size, self.position)
        return ParameterShard(shape, *bounds, self, axis=axis, shares_bases=shares_bases)

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
            rows = self._share_sums([wholes[index] for index in members], self._wire_dtype(dtype), is_mean=True)
            found |= dict(zip(members, rows, strict=True))
        return [found[index] for index in range(len(wholes))]

    def sum_rows(self, whole: Tensor) -> Tensor:
        """See `Collectives.sum_rows`; over the processes that share one copy."""
        (rows,) = self._share_sums([whole], whole.dtype, is_mean=False)
        return rows

    def _share_sums(self, wholes: Sequence[Tensor], dtype: torch.dtype, *, is_mean: bool) -> list[Tensor]:
        """Return the rows of this process of sums over the processes of a copy, or of means over all of them."""
        count = self.world_size
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
        if is_mean and self._copies is not None:
            self.traffic.count("all_reduce_of_copies", [kept], kept.nbytes)
            dist.all_reduce(kept, group=self._copies)
        if is_mean:
            kept.div_(self.mesh.size())
        rows = []
        for whole, part in zip(wholes, kept.split([part.shape[1] for part in parts]), strict=True):
            chunk = -(-len(whole) // count)
            start, stop = share_of(len(whole), count, self.position)
            rows.append(part.view(chunk, *whole.shape[1:])[: stop - start].to(whole.dtype))
        return rows

    def _wire_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.reduce_dtype is None or dtype == torch.float64 else self.reduce_dtype

    def sums(self, values: Sequence[float]) -> list[float]:
        """See `Collectives.sums`."""
        self._turns.meet(f"{len(values)} sums of the optimizer")
        tensor = torch.tensor(values, dtype=torch.float64, device=self.mesh.device_type)
        dist.all_reduce(tensor, group=self.group)
        return list(tensor.tolist())

    def all_true(self, flags: Sequence[bool]) -> list[bool]:
        """See `Collectives.all_true`."""
        self._turns.meet(f"a step of {len(flags)} parameters")
        found = torch.tensor(flags, dtype=torch.int32, device=self.mesh.device_type)
        dist.all_reduce(found, op=dist.ReduceOp.MIN, group=self.group)
        return [bool(flag) for flag in found.tolist()]

    def distribute(self, part: Tensor, total: int, axis: int = 0) -> Tensor:
        """See `Collectives.distribute`."""
        shape = torch.Size((*part.shape[:axis], total, *part.shape[axis + 1 :]))
        stride = torch.empty(shape, device="meta").stride()
        placements = [Shard(axis)] if self.mesh.ndim == 1 else [Replicate(), Shard(axis)]
        # Without shape and stride an uneven tensor is taken for an even one.
        return DTensor.from_local(part, self.mesh, placements, run_check=False, shape=shape, stride=stride)
