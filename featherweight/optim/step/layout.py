"""What is decided once for a parameter (its matrices, side, rank, how each tensor is stored), and its state.

Everything that is decided follows from the shape, the dtype and the options of the parameter group (`plan.py`), so the
bytes of the state are known before the first step, on the meta device too.

The state holds plain tensors under flat names. A name such as `exp_avg` becomes one tensor (`exp_avg`) or several
(`exp_avg_codes`, `exp_avg_block_scale`), as its storage says. A parameter of several matrices (stacked experts, fused
projections) stacks each of these along a first axis. Counters are integers on the CPU: reading them never waits for a
GPU.
"""

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from featherweight.optim.policies.rules import rules
from featherweight.optim.sharding import ParameterShard
from featherweight.optim.step.spread import spread_of
from featherweight.optim.step.weight_update import Rounding, write_moment_
from featherweight.quant.storage import DynamicStorage, StateStorage, storage_for

State = MutableMapping[str, Tensor]
Group = dict[str, Any]
Parts = Mapping[str, Mapping[str, Tensor]]
"""Stored tensors by the name of a moment and of a part of it."""

COUNTER_BYTES = 8
_SUFFIXES = ("codes", "block_scale", "zero_point", "column_norm")
"""Names of the parts that the storages use, where there are several."""


class Member(NamedTuple):
    """One parameter with what belongs to it in the optimizer."""

    parameter: Tensor
    state: State
    """Empty before its first step."""
    group: Group
    position: tuple[int, int] = (0, 1)
    """Position of its first matrix among all projected ones, by which refreshes are staggered, and their number."""


def parts_of(state: Mapping[str, Tensor], name: str, block: int | None = None) -> dict[str, Tensor]:
    """Return the stored tensors of `name`, those of one matrix if `block` is given, as views."""
    if name in state:
        parts = {"": state[name]}
    else:
        parts = {suffix: state[key] for suffix in _SUFFIXES if (key := f"{name}_{suffix}") in state}
    return parts if block is None else {suffix: part[block] for suffix, part in parts.items()}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic of a parameter: float64 for double precision, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the optimizer sees one parameter."""

    name: str
    """Full parameter name if the groups carry names, else its position."""
    index: int
    """Position among all parameters of the optimizer; key of its random numbers."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Dtype of the arithmetic: float64 for float64 weights, else float32."""
    rule: str
    """Name of the inner rule."""
    moments: Mapping[str, StateStorage] = field(default_factory=dict)
    moment_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of each moment: those of one matrix, or of the whole parameter."""
    basis: StateStorage | None = None
    """How bases are stored; None without a subspace, and for random bases, which are drawn anew from the seed."""
    shard: ParameterShard | None = None
    """The rows (or columns) that this process holds; None for all of them. `shape`, `rows`, `columns` and moments are
    then those of these."""

    @property
    def kind(self) -> str:
        """Word for reports."""
        return "full rank"

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the integer counters."""
        return ("step",)

    @property
    def stack(self) -> tuple[int, ...]:
        """Shape in which states of single matrices are stacked."""
        return ()

    @property
    def count(self) -> int:
        """Number of matrices (or tensors) that have states of their own."""
        return math.prod(self.stack)

    def basis_shapes(self) -> dict[str, tuple[int, ...]]:
        """State name and shape of each basis of one matrix, or of the tensor."""
        return {}

    @property
    def first_element(self) -> int:
        """Index of the first element at hand in the whole parameter, so that rounding bits are those of one process."""
        return 0 if self.shard is None else self.shard.start * math.prod(self.shard.full_shape[1:])

    @property
    def first_moment(self) -> int:
        """The same of its moments."""
        return self.first_element

    # ---- state

    @property
    def spread(self) -> dict[str, tuple[int, int]]:
        """Of the state tensors of which this process keeps its own part: the axis that is split, and its length."""
        if self.shard is None:
            return {}
        found = (spread_of(name, kept, self.shard.full_shape, self.dtype) for name, kept in self.moments.items())
        return {key: place for one in found for key, place in one.items()}

    @cached_property
    def moment_kind(self) -> str | None:
        """How all moments are stored, in one word; None if they differ."""
        kinds = {f"codes{s.bits}" if isinstance(s, DynamicStorage) else s.name for s in self.moments.values()}
        return kinds.pop() if len(kinds) == 1 else None

    def moment_bytes(self) -> int:
        """Bytes of all moments."""
        sizes = (kept.nbytes(self.moment_shapes[name], self.dtype) for name, kept in self.moments.items())
        return self.count * sum(sizes)

    def basis_bytes(self) -> int:
        """Bytes of all bases."""
        if self.basis is None:
            return 0
        return self.count * sum(self.basis.nbytes(shape, self.dtype) for shape in self.basis_shapes().values())

    def other_bytes(self) -> int:
        """Bytes of all that is neither moment, basis nor counter."""
        return 0

    def nbytes(self) -> int:
        """Bytes of the whole state of this parameter, exact."""
        counters = self.count * COUNTER_BYTES * len(self.counters)
        return self.moment_bytes() + self.basis_bytes() + counters + self.other_bytes()

    def create_state(self, state: State, device: torch.device) -> None:
        """Add the zero state of this parameter."""
        stored = [(name, storage, self.moment_shapes[name]) for name, storage in self.moments.items()]
        if self.basis is not None:
            stored += [(name, self.basis, shape) for name, shape in self.basis_shapes().items()]
        for name, storage, shape in stored:
            for suffix, part in storage.zeros(shape, device=device, dtype=self.dtype).items():
                stacked = part.unsqueeze(0).repeat(*self.stack, *[1] * part.ndim) if self.stack else part
                state[f"{name}_{suffix}" if suffix else name] = stacked
        for name in self.counters:
            state[name] = torch.zeros(self.stack, dtype=torch.int64)

    def with_moments(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> Self:
        """Return the same layout with the moments that the rule keeps of a gradient or core of `shape`."""
        moments = rules.get(self.rule).moments(shape, group)
        storages = {
            name: storage_for(
                group["state_bits"] if moment.may_quantize else 32,
                signed=moment.is_signed,
                numel=math.prod(moment.shape),
            )
            for name, moment in moments.items()
        }
        return replace(self, moments=storages, moment_shapes={name: moment.shape for name, moment in moments.items()})


@dataclass(frozen=True)
class Stored:
    """The moments of one matrix, or of a slice of a parameter, as they are stored."""

    layout: Layout
    parts: Parts
    rounding: Rounding
    """Of the step that writes them."""
    offset: int = 0
    """Index of the first element in its parameter, where slices or matrices have as many elements as their moments."""
    matrix: int = 0
    """Which of stacked matrices."""

    def slice(self, start: int, stop: int) -> "Stored":
        """Return the moments of a flat slice, as views."""
        parts = {name: self.layout.moments[name].slice(part, start, stop) for name, part in self.parts.items()}
        return replace(self, parts=parts, offset=self.offset + start)

    def read(self, shape: tuple[int, ...] | None = None) -> dict[str, Tensor]:
        """Return the moments in the dtype of the arithmetic; dense ones are the stored tensors themselves.

        Args:
            shape: of every moment; None for those of the layout.
        """
        shapes = self.layout.moment_shapes
        return {
            name: self.layout.moments[name].read(part, shape or shapes[name]).to(self.layout.dtype)
            for name, part in self.parts.items()
        }

    def write(self, moments: Mapping[str, Tensor]) -> None:
        """Store the moments; in bfloat16 with stochastic rounding."""
        for number, (name, values) in enumerate(moments.items(), self.rounding.tensor + 1):
            rounding = replace(self.rounding, tensor=number)
            write_moment_(self.layout.moments[name], self.parts[name], values, rounding, self.first_of(values.numel()))

    def first_of(self, numel: int) -> int:
        """Return the index, in the whole parameter's moment, of the first element of a moment of `numel` elements."""
        return self.offset + self.matrix * numel


@dataclass(frozen=True, kw_only=True)
class DenseLayout(Layout):
    """A parameter that keeps moments of its own size."""

    rank: None = None
    blocks: None = None
