"""What is decided once for a parameter: its matrices, the side, the rank, and how each state tensor is stored.

Everything here follows from the shape, the dtype and the options of the parameter group, so the bytes of the state are
known before the first step, on the meta device too.
Shapes: a parameter is `count` matrices (M, N); core (R, N), (M, R) or (R, R) by side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from featherweight.errors import ShapeError
from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim import state as states
from featherweight.optim.policies.error_feedback import ErrorFeedback
from featherweight.optim.policies.full_periods import FullPeriods
from featherweight.optim.policies.refresh import SEEDED_METHODS, SIDES, Side, cheaper_side, choose_side
from featherweight.optim.policies.residual import ResidualPolicy, residual_policies
from featherweight.optim.policies.rules import rules
from featherweight.optim.sharding import ParameterShard
from featherweight.optim.step.weight_update import Rounding, write_moment_
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.storage import DenseStorage, StateStorage, basis_storage_for, storage_for

LOW_RANK_COUNTERS = ("step", "moment_step", "next_refresh", "refresh_count", "side")
LAZY_COUNTERS = ("refresh_gap", "similarity_count")
_DROPPED, _ERROR_FEEDBACK, _FULL_PERIODS = ResidualPolicy(), ErrorFeedback(), FullPeriods()
Parts = Mapping[str, Mapping[str, Tensor]]
"""Stored tensors by the name of a moment and of a part of it."""


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

    # ---- state

    @property
    def sharded_names(self) -> set[str]:
        """Names of the state tensors of which this process holds its own rows."""
        is_sharded = self.shard is not None and getattr(self, "side", "right") == "right"
        return {states.key_of(name, suffix) for name in self.moments for suffix in states.SUFFIXES if is_sharded}

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
        counters = self.count * states.COUNTER_BYTES * len(self.counters)
        return self.moment_bytes() + self.basis_bytes() + counters + self.other_bytes()

    def create_state(self, state: states.State, device: torch.device) -> None:
        """Add the zero state of this parameter."""
        stored = [(name, storage, self.moment_shapes[name]) for name, storage in self.moments.items()]
        if self.basis is not None:
            stored += [(name, self.basis, shape) for name, shape in self.basis_shapes().items()]
        for name, storage, shape in stored:
            states.create(state, name, storage, shape, self.stack, device=device, dtype=self.dtype)
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
        return replace(self, parts=parts, offset=start)

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
            rounding, begin = replace(self.rounding, tensor=number), self.offset + self.matrix * values.numel()
            write_moment_(self.layout.moments[name], self.parts[name], values, rounding, begin)


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
        return (left, right)

    @property
    def all_rows(self) -> int:
        """M of the whole matrix, of which this process may hold some."""
        return self.rows if self.shard is None else self.shard.full_shape[0]

    def basis_shapes(self) -> dict[str, tuple[int, ...]]:
        """State name and shape of each basis of one matrix."""
        shapes = {"left": (self.all_rows, self.rank), "right": (self.columns, self.rank)}
        return {f"basis_{side}": shape for side, shape in shapes.items() if self.side in (side, "both")}

    def other_bytes(self) -> int:
        """Bytes of what the residual policy and a lazy refresh keep."""
        queue = self.count * self.queue_size * torch.float32.itemsize
        return queue + self.residual.nbytes(self.shape, self.stack, self.dtype)

    def create_state(self, state: states.State, device: torch.device) -> None:
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

    def with_stored_basis(self, state: states.State, group: Mapping[str, Any], dtype: torch.dtype) -> Self:
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
        """Return the core of a gradient, of all processes that hold rows of it, and the subspace of the rows at hand.

        Args:
            subspace: of the whole matrix.
            grad_MN: the rows at hand.
        """
        shard = self.shard
        if shard is not None and subspace.left is not None:
            subspace = MatrixSubspace(left=subspace.left[shard.start : shard.stop], right=subspace.right)
        core = subspace.project(grad_MN).to(self.dtype)
        if shard is not None and subspace.left is not None:
            shard.collectives.sum_(core)
        return core, subspace

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


def plan_matrix(
    name: str, parameter: Tensor, group: Mapping[str, Any], index: int, dtype: torch.dtype
) -> MatrixLayout | None:
    """Decide how a parameter is projected; None if nothing would be saved.

    A parameter keeps full-rank moments if its group is not low-rank, if it is empty or has fewer than two dimensions,
    or if the rank would save nothing (R >= min(M, N)).

    Args:
        name: full parameter name, for messages.
        parameter: any device, meta included.
        group: options of its parameter group.
        index: its position in the optimizer.
        dtype: of the arithmetic.
    Raises:
        ConfigError: for an unknown side.
        ShapeError: if `split` does not divide the rows.
    """
    shape = tuple(parameter.shape)
    blocks, rows, columns = _matrices_of(name, shape, group)
    smaller = min(rows, columns)
    if not group["low_rank"] or not group["rank"] or len(shape) < 2 or parameter.numel() == 0:
        return None
    rank = resolve_rank(group["rank"], smaller)
    if rank >= smaller:
        return None
    side = choose_side(rows, columns, group["proj_type"])
    seeded = group["basis_method"] if group["basis_method"] in SEEDED_METHODS else None
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    basis_bits = group["basis_bits"] or (16 if half else 32)
    layout = MatrixLayout(
        name=name,
        index=index,
        shape=shape,
        dtype=dtype,
        rank=rank,
        side=side,
        blocks=blocks,
        rows=rows,
        columns=columns,
        rule=group["rule"],
        basis=None if seeded else basis_storage_for(basis_bits, group["basis_renorm"]),
        seeded_basis=seeded,
        residual=residual_policy(group),
        product_dtype=torch.bfloat16 if parameter.dtype == torch.bfloat16 and basis_bits <= 16 else dtype,
        queue_size=group["lazy"]["queue_size"] if group["lazy"] else 0,
    ).on_side(side, group)
    if group["proj_type"] == "min_memory" and blocks is None and seeded is None:
        left, right = (layout.on_side(s, group).nbytes() for s in ("left", "right"))
        layout = replace(layout, alternative=cheaper_side(side, left, right))
    return layout


def residual_policy(group: Mapping[str, Any]) -> ResidualPolicy:
    """Return what the options of a parameter group choose for what lies outside of the subspace; one at most."""
    if group["error_feedback"]:
        return _ERROR_FEEDBACK
    if group["full_rank_probability"] > 0:
        return _FULL_PERIODS
    return _DROPPED if group["residual"] is None else residual_policies.get(group["residual"])


def resolve_rank(rank: int | float, smaller: int) -> int:
    """Turn a rank that may be a fraction of min(M, N) into a number of columns.

    Example:
        >>> resolve_rank(0.25, 512), resolve_rank(128, 512)
        (128, 128)
    """
    return max(1, round(rank * smaller)) if isinstance(rank, float) else rank


def _matrices_of(name: str, shape: tuple[int, ...], group: Mapping[str, Any]) -> tuple[int | None, int, int]:
    """Return (blocks, M, N): stacked experts and fused projections give several matrices, convolutions one.

    A fused projection of stacked experts is split inside each expert.
    """
    if len(shape) < 2:
        return None, 1, math.prod(shape)
    stack = shape[0] if len(shape) == 3 and group.get("stacked", True) else None
    rows, columns = (shape[0], math.prod(shape[1:])) if stack is None else shape[1:]
    split = split_of(name, group.get("split"))
    if split == 1:
        return stack, rows, columns
    if rows % split:
        raise ShapeError(
            f"param group: split={split} does not divide the {rows} rows of '{name}' {shape}; "
            "expected a divisor. Project it whole by leaving it out of split."
        )
    return (1 if stack is None else stack) * split, rows // split, columns


def split_of(name: str, split: Mapping[str, int] | None) -> int:
    """Return in how many row blocks a parameter is split; a key of `split` begins or ends a component of the name.

    Example:
        >>> split_of("layers.0.attn.qkv_proj.weight", {"qkv": 3}), split_of("layers.0.mlp.weight", {"qkv": 3})
        (3, 1)
    """
    for key, count in (split or {}).items():
        if any(component.startswith(key) or component.endswith(key) for component in name.split(".")):
            return count
    return 1
