"""What is decided once for a parameter (its matrices, side, rank, how each tensor is stored), and its state.

Everything that is decided follows from the shape, the dtype and the options of the parameter group (`plan.py`), so the
bytes of the state are known before the first step, on the meta device too.

The state holds plain tensors under flat names. A name such as `exp_avg` becomes one tensor (`exp_avg`) or several
(`exp_avg_codes`, `exp_avg_block_scale`), as its storage says. A parameter of several matrices (stacked experts, fused
projections) stacks each of these along a first axis. Counters are integers on the CPU: reading them never waits for a
GPU.
Shapes: a parameter is `count` matrices (M, N); core (R, N), (M, R) or (R, R) by side.
"""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.residual import ResidualPolicy
from featherweight.optim.policies.rules import rules
from featherweight.optim.policies.sides import SIDES, Side
from featherweight.optim.sharding import ParameterShard
from featherweight.optim.step.weight_update import Rounding, write_moment_
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.storage import DenseStorage, DynamicStorage, StateStorage, storage_for

State = MutableMapping[str, Tensor]
Group = dict[str, Any]
Parts = Mapping[str, Mapping[str, Tensor]]
"""Stored tensors by the name of a moment and of a part of it."""

LOW_RANK_COUNTERS = ("step", "moment_step", "next_refresh", "refresh_count", "side")
LAZY_COUNTERS = ("refresh_gap", "similarity_count")
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
    """The rows that this process holds; None for all of them. `shape`, `rows` and moments are then those of these."""

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
    def sharded_names(self) -> set[str]:
        """Names of the state tensors of which this process holds its own rows."""
        parts = {f"{name}_{suffix}" for name in self.moments for suffix in _SUFFIXES} | set(self.moments)
        return parts if self._shares_moments else set()

    @property
    def _shares_moments(self) -> bool:
        return self.shard is not None

    @property
    def shared_columns(self) -> int | None:
        """Columns of the whole moments, where each process holds some of these; None where it holds rows."""
        return None

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


@dataclass(frozen=True, kw_only=True)
class MatrixLayout(Layout):
    """A parameter of one or several projected matrices."""

    rank: int
    """R."""
    side: Side
    alternative: Side | None = None
    """Cheaper side to try at the first steps (`proj_type="min_memory"`)."""
    blocks: int | None
    """Number of stacked matrices, None for one."""
    rows: int
    columns: int
    seeded_basis: str | None
    """Method of bases that are drawn anew from the seed whenever they are needed."""
    residual: ResidualPolicy
    """What becomes of the part of the gradient outside the subspace."""
    product_dtype: torch.dtype
    """Dtype of products with bases: bfloat16 for bfloat16 weights with bases of 16 bits or fewer, else `dtype`."""
    core_columns: tuple[int, int] | None = None
    """First column at hand of a core behind a left basis, and the one behind the last; None for all of them."""
    queue_size: int
    """Similarities of subspaces that a lazy refresh keeps; 0 for refreshes at fixed intervals."""

    @property
    def kind(self) -> str:
        """Word for reports."""
        return f"rank {self.rank}, {self.side}"

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the integer counters."""
        return (*LOW_RANK_COUNTERS, *(LAZY_COUNTERS if self.queue_size else ()))

    @property
    def stack(self) -> tuple[int, ...]:
        """Shape in which states of single matrices are stacked."""
        return () if self.blocks is None else (self.blocks,)

    @property
    def core_shape(self) -> tuple[int, int]:
        """Shape of the core of one matrix."""
        left = self.rank if self.side in ("left", "both") else self.rows
        right = self.rank if self.side in ("right", "both") else self.columns
        if self.core_columns is not None:
            right = self.core_columns[1] - self.core_columns[0]
        return (left, right)

    @property
    def _shares_moments(self) -> bool:
        return self.shard is not None and (self.side == "right" or self.core_columns is not None)

    @property
    def shared_columns(self) -> int | None:
        """See `Layout.shared_columns`."""
        return None if self.core_columns is None else self.columns

    def zero_core(self, device: torch.device) -> Tensor:
        """Return a core of zeros in the dtype of the arithmetic."""
        return torch.zeros(self.core_shape, dtype=self.dtype, device=device)

    @property
    def all_rows(self) -> int:
        """M of the whole matrix, of which this process may hold some."""
        return self.rows if self.shard is None else self.shard.full_shape[0]

    @property
    def first_moment(self) -> int:
        """Index of the first element at hand in the moments of the whole matrix."""
        return 0 if self.shard is None or self.side != "right" else self.shard.start * self.rank

    @property
    def whole(self) -> Self:
        """The layout of the whole matrix, of which this process may hold some rows."""
        return (
            self
            if self.shard is None
            else replace(self, shape=self.shard.full_shape, rows=self.all_rows, shard=None, core_columns=None)
        )

    def basis_shapes(self) -> dict[str, tuple[int, ...]]:
        """State name and shape of each basis of one matrix."""
        shapes = {"left": (self.all_rows, self.rank), "right": (self.columns, self.rank)}
        return {f"basis_{side}": shape for side, shape in shapes.items() if self.side in (side, "both")}

    def other_bytes(self) -> int:
        """Bytes of what the residual policy and a lazy refresh keep."""
        kept = self.residual.new_state(self.shape, self.stack, self.dtype, torch.device("meta"))
        return self.count * self.queue_size * torch.float32.itemsize + sum(one.nbytes for one in kept.values())

    def create_state(self, state: State, device: torch.device) -> None:
        """Add the zero state of this parameter."""
        super().create_state(state, device)
        if self.queue_size:
            state["similarities"] = torch.zeros((*self.stack, self.queue_size), dtype=torch.float32)
        state.update(self.residual.new_state(self.shape, self.stack, self.dtype, device))
        state["side"].fill_(SIDES.index(self.side))

    def on_side(self, side: Side, group: Mapping[str, Any]) -> Self:
        """Return the same layout with the basis on another side."""
        moved = replace(self, side=side, alternative=None)
        return moved.with_moments(moved.core_shape, group)

    def with_stored_basis(self, state: State, group: Mapping[str, Any], dtype: torch.dtype) -> Self:
        """Return the same layout with bases as wide as those of a state.

        Without `basis_bits` their width follows the dtype of the weights when the state was created, which may have
        changed since (`model.bfloat16()`); a state keeps its own.

        Args:
            state: of the parameter; empty before the first step.
            group: its group.
            dtype: of the weights now.
        """
        stored = next((state[name] for name in ("basis_left", "basis_right") if name in state), None)
        if stored is None or group["basis_bits"] is not None or not isinstance(self.basis, DenseStorage):
            return self
        is_half = stored.dtype == torch.bfloat16
        product = torch.bfloat16 if is_half and dtype == torch.bfloat16 else self.dtype
        return replace(self, basis=DenseStorage(torch.bfloat16 if is_half else None), product_dtype=product)

    # ---- from the parameter to its matrices

    def project(self, subspace: MatrixSubspace, grad_MN: Tensor) -> tuple[Tensor, MatrixSubspace]:
        """Return the core at hand of a gradient of which processes hold rows, and the subspace of the rows at hand.

        Args:
            subspace: of the whole matrix.
            grad_MN: the rows at hand.
        """
        subspace = self.at_hand(subspace)
        core = subspace.project(grad_MN).to(self.dtype)
        if self.shard is not None and self.core_columns is not None:
            core = self.shard.collectives.sum_rows(core.mT).mT.contiguous()
        elif self.shard is not None and subspace.left is not None:
            self.shard.collectives.sum_(core)
        return core, subspace

    def whole_columns(self, core: Tensor) -> Tensor:
        """Return all columns of what has those of the core at hand; a collective if that are not all."""
        if self.shard is None or self.core_columns is None:
            return core
        return self.shard.collectives.gather_rows(core.mT.contiguous(), self.columns).mT.contiguous()

    def at_hand(self, subspace: MatrixSubspace) -> MatrixSubspace:
        """Return the part of a subspace that belongs to the rows at hand."""
        shard = self.shard
        if shard is None or subspace.left is None:
            return subspace
        return MatrixSubspace(left=subspace.left[shard.start : shard.stop], right=subspace.right)

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """Split a tensor of the parameter's shape into its (M, N) matrices, as views where the strides allow it."""
        return list(tensor.reshape(self.count, self.rows, self.columns).unbind(0))

    def gradients(self, grad: Gradient) -> Sequence[Gradient]:
        """Split the gradient of the parameter into those of its matrices; factors of it are split as factors."""
        if not isinstance(grad, OuterProduct):
            return self.matrices(grad)
        return [grad.rows(start, start + self.rows) for start in range(0, grad.shape[0], self.rows)]

    def weights(self, weight: Tensor | Int8Weight) -> Sequence[Tensor | Int8Weight]:
        """Split a weight into its (M, N) matrices."""
        return weight.split(self.count) if isinstance(weight, Int8Weight) else self.matrices(weight)

    def used_matrices(self, grad: Tensor) -> Tensor:
        """Return for each matrix whether its gradient has an entry that is not zero, as a boolean vector."""
        return grad.reshape(self.count, self.rows * self.columns).any(dim=1)
