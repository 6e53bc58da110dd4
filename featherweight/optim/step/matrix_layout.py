"""How the optimizer sees a parameter of one or several projected matrices, and what of them a process holds.

Shapes: a parameter is `count` matrices (M, N); core (R, N), (M, R) or (R, R) by side; basis (M, R) or (N, R).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.residual import ResidualPolicy
from featherweight.optim.policies.sides import SIDES, Side
from featherweight.optim.step.layout import Layout, State, parts_of
from featherweight.optim.step.spread import CoreShare, own_parts, shared_bytes, spread_of, whole_parts
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.storage import DenseStorage

LOW_RANK_COUNTERS = ("step", "moment_step", "next_refresh", "refresh_count", "side")
LAZY_COUNTERS = ("refresh_gap", "similarity_count")


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
    core_share: CoreShare | None = None
    """Which part of a core behind a left basis this process has; None for all of it."""
    whole_because: str = ""
    """Why every process has all moments behind a left basis, where they could not be shared."""
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
    def count(self) -> int:
        """Number of matrices, each with states of its own."""
        return 1 if self.blocks is None else self.blocks

    @property
    def core_shape(self) -> tuple[int, int]:
        """Shape of the core of one matrix."""
        left = self.rank if self.side in ("left", "both") else self.rows
        right = self.rank if self.side in ("right", "both") else self.columns
        return (left, right) if self.core_share is None else self.core_share.shape

    @property
    def shares_core(self) -> bool:
        """Whether this process has a part of the core, and of the moments."""
        return self.shard is not None and (self.side == "right" or self.core_share is not None)

    @property
    def shares_bases(self) -> bool:
        """Whether this process keeps a part of the basis, which is gathered where it is used."""
        return self.shard is not None and self.shard.shares_bases and self.basis is not None

    @property
    def places(self) -> tuple[str, str, str, str]:
        """Side, and what this process has of weight, moments and basis, in words for reports."""
        weight = "all" if self.shard is None else ("rows", "columns")[self.shard.axis]
        moments = self.core_share.words if self.core_share is not None else "rows" if self.shares_core else "all"
        if self.whole_because:
            moments += f": {self.whole_because}"
        basis = "drawn from the seed" if self.basis is None else "a share" if self.shares_bases else "all"
        return self.side, weight, moments, basis

    @property
    def has_own_basis(self) -> bool:
        """Whether that part is all that the rows at hand need: rows of a dense left basis."""
        rows = self.shard is not None and self.shard.axis == 0 and self.side == "left"
        return self.shares_bases and rows and isinstance(self.basis, DenseStorage)

    @property
    def spread(self) -> dict[str, tuple[int, int]]:
        """See `Layout.spread`."""
        found: dict[str, tuple[int, int]] = {}
        if self.shares_core:
            axis = int(self.core_share is not None and self.core_share.block is None)
            for name, kept in self.moments.items():
                found |= spread_of(name, kept, self.whole.core_shape, self.dtype, axis)
        if self.shares_bases and self.basis is not None:
            for name, shape in self.basis_shapes().items():
                found |= spread_of(name, self.basis, shape, self.dtype)
        return found

    def zero_core(self, device: torch.device) -> Tensor:
        """Return a core of zeros in the dtype of the arithmetic."""
        return torch.zeros(self.core_shape, dtype=self.dtype, device=device)

    @property
    def all_rows(self) -> int:
        """M of the whole matrix, of which this process may hold some."""
        return self.rows if self.shard is None else self.shard.full_shape[0]

    @property
    def all_columns(self) -> int:
        """N of the whole matrix, of which this process may hold some."""
        is_part = self.shard is not None and self.shard.axis == 1
        return self.shard.full_shape[1] if self.shard is not None and is_part else self.columns

    @property
    def first_element(self) -> int:
        """See `Layout.first_element`; of columns the first one of the first row."""
        is_part = self.shard is not None and self.shard.axis == 1
        return self.shard.start if self.shard is not None and is_part else super().first_element

    @property
    def row_stride(self) -> int | None:
        """Elements from row to row of the whole matrix, where this process holds columns; None for rows."""
        return self.all_columns if self.shard is not None and self.shard.axis == 1 else None

    @property
    def first_moment(self) -> int:
        """Index of the first element at hand in the moments of the whole matrix."""
        if self.core_share is not None and self.core_share.block is not None:
            return self.core_share.start * self.core_share.block
        return 0 if self.shard is None or self.side != "right" else self.shard.start * self.rank

    @property
    def whole(self) -> Self:
        """The layout of the whole matrix, of which this process may hold some rows."""
        if self.shard is None:
            return self
        size: dict[str, Any] = {"shape": self.shard.full_shape, "rows": self.all_rows, "columns": self.all_columns}
        return replace(self, **size, shard=None, core_share=None)

    def basis_shapes(self) -> dict[str, tuple[int, ...]]:
        """State name and shape of each basis of one matrix."""
        shapes = {"left": (self.all_rows, self.rank), "right": (self.all_columns, self.rank)}
        return {f"basis_{side}": shape for side, shape in shapes.items() if self.side in (side, "both")}

    def basis_bytes(self) -> int:
        """See `Layout.basis_bytes`; of shared ones those of this process."""
        if not self.shares_bases or self.basis is None or self.shard is None:
            return super().basis_bytes()
        shapes = self.basis_shapes().values()
        return sum(shared_bytes(self.basis, shape, self.dtype, self.shard) for shape in shapes)

    def read_basis(self, name: str, parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return a basis, which may be the stored tensor itself; a collective if processes share it.

        Args:
            name: one of `basis_shapes`.
            parts: its stored parts.
            dtype: of the result.
        """
        assert self.basis is not None
        shape = self.basis_shapes()[name]
        if self.shares_bases and self.shard is not None:
            parts = whole_parts(parts, self.basis, shape, self.dtype, self.shard)
        if "" in parts and parts[""].dtype == dtype:
            return parts[""]
        return self.basis.read(parts, shape).to(dtype)

    def write_basis_(self, name: str, parts: Mapping[str, Tensor], values: Tensor) -> None:
        """Store a whole basis, or of a shared one the part of this process."""
        assert self.basis is not None
        if not self.shares_bases or self.shard is None:
            self.basis.write_(parts, values)
            return
        whole = self.basis.zeros(self.basis_shapes()[name], device=values.device, dtype=self.dtype)
        self.basis.write_(whole, values)
        for suffix, part in own_parts(whole, self.shard).items():
            parts[suffix].copy_(part)

    def other_bytes(self) -> int:
        """Bytes of what the residual policy and a lazy refresh keep."""
        kept = self.residual.new_state(self.shape, self.stack, self.dtype, torch.device("meta"))
        return self.count * self.queue_size * torch.float32.itemsize + sum(one.nbytes for one in kept.values())

    def create_state(self, state: State, device: torch.device) -> None:
        """Add the zero state of this parameter."""
        super().create_state(state, device)
        if self.shares_bases and self.shard is not None:
            for name in self.basis_shapes():
                for suffix, part in own_parts(parts_of(state, name), self.shard).items():
                    state[f"{name}_{suffix}" if suffix else name] = part.clone()
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

    def project(self, subspace: MatrixSubspace, grad_MN: Tensor) -> Tensor:
        """Return the core at hand of a gradient of which processes hold rows or columns.

        Args:
            subspace: of the rows at hand.
            grad_MN: the rows, or columns, at hand.
        """
        core, shard = subspace.project(grad_MN).to(self.dtype), self.shard
        if shard is None or subspace.left is None or shard.axis == 1:
            return core
        if self.core_share is None:
            shard.collectives.sum_(core)
            return core
        return self.core_share.part_of_rows(shard.collectives.sum_rows(self.core_share.as_rows(core)))

    def whole_core(self, core: Tensor) -> Tensor:
        """Return all of what lies as the core behind a left basis; a collective if this process has a part of it."""
        return core if self.shard is None or self.core_share is None else self.core_share.whole(core, self.shard)

    def to_carry(self, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what of moments a change of basis needs at once: all of those that lie in blocks; a collective."""
        is_local = self.core_share is None or self.core_share.block is None
        return moments if is_local else {name: self.whole_core(moment) for name, moment in moments.items()}

    def carried(self, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's part of what `to_carry` has returned."""
        share = self.core_share
        is_local = share is None or share.block is None
        return moments if is_local or share is None else {name: share.part(one) for name, one in moments.items()}

    def for_weight(self, direction: Tensor) -> Tensor:
        """Return of a direction that lies as the core what the weight at hand needs: all columns for rows of it."""
        return direction if self.shard is not None and self.shard.axis == 1 else self.whole_core(direction)

    def at_hand(self, subspace: MatrixSubspace) -> MatrixSubspace:
        """Return the part of a subspace that belongs to the rows at hand."""
        shard = self.shard
        if shard is None or subspace.left is None or shard.axis == 1:
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
