"""Parameters of which every process holds some rows: what an optimizer must know of that, without torch.distributed.

A sharded parameter (a DTensor of `fully_shard`) is registered here by `featherweight.distributed`. The optimizer plans
it by its whole shape, so that side, rank, refresh turn and storage do not depend on the number of processes, and works
on the rows at hand: a right-sided core ``G_i Q`` is local, a left-sided one is the sum of ``P_i^T G_i``. Of a matrix
behind a left basis a process may hold columns in place of rows; then ``P^T G_i`` is local, too.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from featherweight.errors import ConfigError
from featherweight.unwrap import is_distributed, local_of


class Collectives(Protocol):
    """What the processes of one mesh do together."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    @property
    def position(self) -> int:
        """Which of them this one is, from 0."""
        ...

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes."""
        ...

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """Return all rows, in order, on every process.

        Args:
            rows: those of this process, by the rule of ``torch.chunk``.
            total: number of all rows.
        """
        ...

    def mean_rows(self, wholes: Sequence[Tensor]) -> list[Tensor]:
        """Return of each tensor's mean over the processes the rows of this process, by the rule of ``torch.chunk``.

        Args:
            wholes: matrices of all rows, of one dtype, of equal shapes on all processes; one collective for all.
        """
        ...

    def sum_rows(self, whole: Tensor) -> Tensor:
        """Return of a matrix's sum over the processes the rows of this process, by the rule of ``torch.chunk``."""
        ...

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return sums over the processes in float64, the same bits on all."""
        ...

    def all_true(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is true on every process."""
        ...

    def distribute(self, part: Tensor, total: int, axis: int = 0) -> Tensor:
        """Return the rows (or columns) at hand as part of a tensor of all, which checkpoints reshard (a DTensor)."""
        ...


def share_of(total: int, count: int, position: int) -> tuple[int, int]:
    """Return where the share of a process begins and ends along an axis, by the rule of ``torch.chunk``.

    Example:
        >>> [share_of(7, 3, position) for position in range(3)], share_of(1, 3, 2)
        ([(0, 3), (3, 6), (6, 7)], (1, 1))
    """
    chunk = -(-total // count)
    return min(position * chunk, total), min((position + 1) * chunk, total)


Spread = Mapping[str, tuple[int, int]]
"""Of state tensors that are shared over the processes, by name: the axis that is split, and the length of it."""


@dataclass(frozen=True, eq=False)
class ParameterShard:
    """The rows of a parameter that this process holds, or its columns."""

    full_shape: tuple[int, ...]
    start: int
    """First row."""
    stop: int
    """Row behind the last one; equal to `start` if there are more processes than rows."""
    collectives: Collectives
    rows: Tensor | None = None
    """What stands for the rows at hand of an int8 weight, whose handle is no DTensor and gets gradients of all rows."""
    axis: int = 0
    """0 for rows, 1 for columns: `start` and `stop` are then columns."""
    shares_bases: bool = False
    """Whether each process keeps a share of the bases, too, which are gathered where they are used."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rows (or columns) at hand."""
        return (*self.full_shape[: self.axis], self.stop - self.start, *self.full_shape[self.axis + 1 :])

    def whole(self, part: Tensor) -> Tensor:
        """Return all rows (or columns) of a tensor of which this process holds its own; a collective."""
        total = self.full_shape[self.axis]
        if self.axis == 0:
            return self.collectives.gather_rows(part, total)
        return self.collectives.gather_rows(part.mT.contiguous(), total).mT.contiguous()

    def part(self, whole: Tensor) -> Tensor:
        """Return the rows (or columns) at hand of a tensor of the whole shape, as a view."""
        return whole.narrow(self.axis, self.start, self.stop - self.start)

    def share(self, total: int) -> tuple[int, int]:
        """Return where the share of this process begins and ends along another axis of `total`."""
        return share_of(total, self.collectives.world_size, self.collectives.position)

    def distributed_state(self, state: Mapping[str, Tensor], spread: Spread) -> dict[str, Tensor]:
        """Return a state whose shared tensors are parts of whole ones.

        Args:
            state: of this process.
            spread: of the layout; what is not in it all processes hold alike.
        """
        return {
            key: self.collectives.distribute(value, spread[key][1], spread[key][0]) if key in spread else value
            for key, value in state.items()
        }

    def local_state(self, state: Mapping[str, Tensor], spread: Spread) -> dict[str, Tensor]:
        """Return what this process holds of a state of whole tensors, or of what `distributed_state` has made."""
        local = {}
        for key, value in state.items():
            if is_distributed(value):
                value = local_of(value)
            elif key in spread:
                axis, total = spread[key]
                if value.ndim > axis and value.shape[axis] == total:
                    start, stop = self.share(total)
                    value = value.narrow(axis, start, stop - start)
            local[key] = value
        return local

    def require_whole_blocks(self, name: str, elements_per_row: int, block_size: int) -> None:
        """Refuse quantised states whose blocks would lie across two processes, as their values would depend on that.

        Raises:
            ConfigError: names the parameter.
        """
        count, rows = self.collectives.world_size, self.full_shape[0]
        if rows % count or (rows // count * elements_per_row) % block_size:
            raise ConfigError(
                f"optimizer: '{name}' {self.full_shape} on {count} processes splits blocks of {block_size} elements of "
                "its quantised state; expected whole blocks on each. Set state_bits=32 for its group, or take a rank "
                f"that is a multiple of {block_size} and a number of processes that divides its rows."
            )


_FLAT = {
    "_is_flat_param": "FullyShardedDataParallel (FSDP 1)",
    "ds_id": "DeepSpeed ZeRO-3",
    "ds_tensor": "DeepSpeed ZeRO-3",
}
"""What marks a parameter of an engine that flattens, and its name."""


def refuse_flattened(parameter: Tensor) -> None:
    """Refuse a parameter of an engine that flattens.

    Raises:
        ConfigError: names the engine, and what to use in its place.
    """
    for mark, words in _FLAT.items():
        if hasattr(parameter, mark):
            raise ConfigError(
                f"optimizer: a parameter {tuple(parameter.shape)} is a flattened shard of {words}, which has no rows; "
                'expected ordinary parameters. Give the bare model to fw.distributed.shard(model, "fsdp2") (FSDP2).'
            )


_shards: WeakIdKeyDictionary = WeakIdKeyDictionary()


def register_shard(parameter: Tensor, shard: ParameterShard) -> None:
    """Let optimizers know that a parameter is sharded."""
    _shards[parameter] = shard


def shard_of(parameter: Tensor) -> ParameterShard | None:
    """Return what is known of a sharded parameter; None for an ordinary one.

    Raises:
        ConfigError: for a DTensor that nobody has registered, and for shards without rows.
    """
    found: ParameterShard | None = _shards.get(parameter)
    refuse_flattened(parameter)
    if found is None and is_distributed(parameter):
        raise ConfigError(
            f"optimizer: a parameter {tuple(parameter.shape)} is a DTensor of which nothing is known; expected a model "
            'that fw.distributed.shard(model, "fsdp2") has looked at. Call it before the optimizer is built, also '
            "after a fully_shard of your own."
        )
    return found


def share_bases(parameters: Iterable[Tensor]) -> None:
    """Let optimizers keep on each process a share of the bases of sharded parameters; they plan anew at their next use.

    Args:
        parameters: sharded or not; before the first step of their optimizer.
    """
    for parameter in parameters:
        found: ParameterShard | None = _shards.get(parameter)
        if found is not None:
            _shards[parameter] = replace(found, shares_bases=True)


_sharded: WeakIdKeyDictionary = WeakIdKeyDictionary()


def register_unsharded(tensor: Tensor, parameter: Tensor) -> None:
    """Let a tensor be known as the whole of a sharded parameter: what layers compute with, or what it was before."""
    _sharded[tensor] = parameter


def sharded_of(tensor: Tensor) -> Tensor:
    """Return the sharded parameter whose whole a tensor is; the tensor itself if it is none."""
    found: Tensor = _sharded.get(tensor, tensor)
    return found


def at_hand(parameter: Tensor) -> Tensor:
    """Return what this process has of a parameter: all of it, or what stands for its rows."""
    shard: ParameterShard | None = _shards.get(parameter)
    found: Tensor = local_of(parameter) if shard is None or shard.rows is None else shard.rows
    return found


def unsharded_of(parameters: Collection[Tensor]) -> list[Tensor]:
    """Return the tensors that layers compute with in place of some sharded parameters."""
    wanted = {id(parameter) for parameter in parameters}
    return [tensor for tensor, parameter in _sharded.items() if id(parameter) in wanted]


def agree(parameters: Sequence[Tensor], flags: Sequence[bool]) -> list[bool]:
    """Return verdicts about gradients as all processes have them: a NaN in one row is seen by its owner alone.

    Args:
        parameters: of which the verdicts are, in the same order on all processes.
        flags: what this process has found.
    """
    if not _shards:
        return list(flags)
    sharded = [index for index, one in enumerate(parameters) if shard_of(one) is not None]
    agreed = list(flags)
    if sharded:
        shard = shard_of(parameters[sharded[0]])
        assert shard is not None
        found = shard.collectives.all_true([flags[index] for index in sharded])
        for index, flag in zip(sharded, found, strict=True):
            agreed[index] = flag
    return agreed
