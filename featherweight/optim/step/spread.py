"""How what an optimizer keeps of one matrix lies on the processes that share it: a core in parts, a basis in parts.

A core behind a left basis (R, N) has none of the rows of its matrix, so it is split by itself: by columns where moments
are floats, which a change of basis leaves apart, and by whole blocks of its flat elements where they are codes. A basis
is split as it is stored, part by part (codes, scales), so any number of processes may share it: the parts are gathered
before they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.optim.sharding import ParameterShard
from featherweight.quant.storage import StateStorage


@dataclass(frozen=True)
class CoreShare:
    """Which part of a core (R, N) behind a left basis this process has."""

    whole_shape: tuple[int, int]
    """(R, N)."""
    start: int
    """First column, or first block."""
    stop: int
    """The one behind the last."""
    block: int | None = None
    """Elements of a block of the flat core; None where columns are shared."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the part: some columns, or blocks by their elements."""
        count = self.stop - self.start
        return (self.whole_shape[0], count) if self.block is None else (count, self.block)

    @property
    def words(self) -> str:
        """Words for reports."""
        return "columns" if self.block is None else f"blocks of {self.block}"

    def as_rows(self, core: Tensor) -> Tensor:
        """Return a whole core such that processes share its rows."""
        return core.mT.contiguous() if self.block is None else core.reshape(-1, self.block)

    def part_of_rows(self, rows: Tensor) -> Tensor:
        """Return the part that some rows of `as_rows` are."""
        return rows.mT.contiguous() if self.block is None else rows

    def part(self, core: Tensor) -> Tensor:
        """Return the part at hand of a whole core."""
        return self.part_of_rows(self.as_rows(core)[self.start : self.stop])

    def whole(self, part: Tensor, shard: ParameterShard) -> Tensor:
        """Return all of a core of which each process has its part; a collective."""
        rows = self.as_rows(part) if self.block is None else part
        total = self.whole_shape[1] if self.block is None else self.whole_shape[0] * self.whole_shape[1] // self.block
        found = shard.collectives.gather_rows(rows, total)
        return found.mT.contiguous() if self.block is None else found.reshape(self.whole_shape)


def spread_of(
    name: str, storage: StateStorage, shape: tuple[int, ...], dtype: torch.dtype, axis: int = 0
) -> dict[str, tuple[int, int]]:
    """Return for each stored part of a tensor which axis is split over the processes, and how long that is.

    Args:
        name: of the tensor in the state.
        storage: how it is stored; parts that are flat are split along their only axis.
        shape: of the whole tensor.
        dtype: of the arithmetic.
        axis: that is split where a part has it.
    """
    parts = storage.zeros(shape, device="meta", dtype=dtype)
    axes = {suffix: axis if part.ndim > axis else 0 for suffix, part in parts.items()}
    return {
        f"{name}_{suffix}" if suffix else name: (axes[suffix], part.shape[axes[suffix]])
        for suffix, part in parts.items()
    }


def shared_bytes(storage: StateStorage, shape: tuple[int, ...], dtype: torch.dtype, shard: ParameterShard) -> int:
    """Return the bytes that this process keeps of a basis whose parts are shared."""
    parts = storage.zeros(shape, device="meta", dtype=dtype).values()
    return sum((stop - start) * part[:1].nbytes for part in parts for start, stop in [shard.share(len(part))])


def own_parts(parts: Mapping[str, Tensor], shard: ParameterShard) -> dict[str, Tensor]:
    """Return what this process keeps of the parts of a basis, as views."""
    bounds = {suffix: shard.share(len(part)) for suffix, part in parts.items()}
    return {suffix: part[slice(*bounds[suffix])] for suffix, part in parts.items()}


def whole_parts(
    parts: Mapping[str, Tensor],
    storage: StateStorage,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    shard: ParameterShard,
) -> dict[str, Tensor]:
    """Return all of a basis of which each process keeps its share; a collective for each part."""
    wanted = storage.zeros(shape, device="meta", dtype=dtype)
    return {suffix: shard.collectives.gather_rows(part, len(wanted[suffix])) for suffix, part in parts.items()}
