"""What is decided once for a parameter: its matrices, the side, the rank, and how each state tensor is stored.

Everything here follows from the shape, the dtype and the options of the parameter group, so the bytes of the state are
known before the first step, on the meta device too.
Shapes: a parameter is `blocks` matrices (M, N); core (R, N), (M, R) or (R, R) by side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError, ShapeError
from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.optim import state as states
from featherweight.optim.policies.refresh import SEEDED_METHODS, Side, cheaper_side, choose_side
from featherweight.optim.policies.rules import rules
from featherweight.optim.tucker.options import projects_tensors
from featherweight.optim.tucker.plan import TensorPlan, factor_storage, moment_storages, plan_tensor
from featherweight.quant.storage import StateStorage, basis_storage_for, storage_for

DENSE_COUNTERS = ("step",)
LOW_RANK_COUNTERS = ("step", "moment_step", "next_refresh", "refresh_count", "side")
LAZY_COUNTERS = ("refresh_gap", "similarity_count")


@dataclass(frozen=True)
class Layout:
    """How the optimizer sees one parameter."""

    name: str
    """Full parameter name if the groups carry names, else its position."""
    index: int
    """Position among all parameters of the optimizer; key of its random numbers."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """Dtype of the arithmetic: float64 for float64 weights, else float32."""
    rank: int | None
    """R, or None for a parameter that keeps full-rank moments."""
    side: Side
    alternative: Side | None
    """Cheaper side to try at the first steps (`proj_type="min_memory"`)."""
    blocks: int | None
    """Number of stacked matrices, None for one."""
    rows: int
    columns: int
    rule: str
    """Name of the inner rule."""
    moments: Mapping[str, StateStorage]
    moment_shapes: Mapping[str, tuple[int, ...]]
    """Shape of each moment: those of one matrix, or of the whole parameter."""
    basis: StateStorage | None
    """How bases are stored; None for a full-rank parameter, and for random bases, which are drawn anew from the
    seed."""
    seeded_basis: str | None
    """Method of bases that are drawn anew from the seed whenever they are needed."""
    residual: str | None
    """Name of the residual policy; one keeps a float32 norm of each matrix."""
    product_dtype: torch.dtype = torch.float32
    """Dtype of products with bases: bfloat16 for bfloat16 weights with bases of 16 bits or fewer, else `dtype`."""
    error_feedback: bool = False
    """Whether what the projection loses is kept, in a tensor of the parameter's size, for the next step."""
    has_full_periods: bool = False
    """Whether there are periods in which a matrix follows the complement of its subspace."""
    queue_size: int = 0
    """Similarities of subspaces that a lazy refresh keeps; 0 for refreshes at fixed intervals."""
    tensor: TensorPlan | None = None
    """How a tensor is projected mode by mode, and how a complex one is held; None for matrices."""

    @property
    def stack(self) -> tuple[int, ...]:
        """Shape in which states of single matrices are stacked."""
        return () if self.blocks is None else (self.blocks,)

    @property
    def core_shape(self) -> tuple[int, int]:
        """Shape of the core of one matrix."""
        assert self.rank is not None
        left = self.rank if self.side in ("left", "both") else self.rows
        right = self.rank if self.side in ("right", "both") else self.columns
        return (left, right)

    @property
    def kind(self) -> str:
        """Word for reports."""
        if self.tensor is not None:
            return "full rank" if self.rank is None else f"{self.tensor.kind}, {self.tensor.share:.1%}"
        return "full rank" if self.rank is None else f"rank {self.rank}, {self.side}"

    def basis_shapes(self) -> dict[str, tuple[int, ...]]:
        """State name and shape of each basis of one matrix, or of the tensor."""
        if self.tensor is not None:
            return self.tensor.factor_shapes()
        if self.rank is None:
            return {}
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "left": ("basis_left", (self.rows, self.rank)),
            "right": ("basis_right", (self.columns, self.rank)),
        }
        return dict(shapes[side] for side in ("left", "right") if self.side in (side, "both"))

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the integer counters."""
        if self.tensor is not None:
            return self.tensor.counters
        if self.rank is None:
            return DENSE_COUNTERS
        periods = ("full_period",) if self.has_full_periods else ()
        return (*LOW_RANK_COUNTERS, *periods, *(LAZY_COUNTERS if self.queue_size else ()))

    def moment_bytes(self) -> int:
        """Bytes of all moments."""
        return (self.blocks or 1) * sum(
            storage.nbytes(self.moment_shapes[name], self.dtype) for name, storage in self.moments.items()
        )

    def basis_bytes(self) -> int:
        """Bytes of all bases."""
        if self.basis is None:
            return 0
        return (self.blocks or 1) * sum(self.basis.nbytes(s, self.dtype) for s in self.basis_shapes().values())

    def counter_bytes(self) -> int:
        """Bytes of the counters and of the similarities that a lazy refresh keeps."""
        queue = self.queue_size * torch.float32.itemsize
        return (self.blocks or 1) * (states.COUNTER_BYTES * len(self.counters) + queue)

    def nbytes(self) -> int:
        """Bytes of the whole state of this parameter, exact."""
        norms = 0 if self.residual is None else (self.blocks or 1) * torch.float32.itemsize
        error = math.prod(self.shape) * self.dtype.itemsize if self.error_feedback else 0
        others = 0 if self.tensor is None else self.tensor.other_bytes()
        return self.moment_bytes() + self.basis_bytes() + self.counter_bytes() + norms + error + others

    def on_side(self, side: Side, group: Mapping[str, Any]) -> "Layout":
        """Return the same layout with the basis on another side."""
        moved = replace(self, side=side, alternative=None)
        return moved._with_moments(moved.core_shape, group)

    def _with_moments(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> "Layout":
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

    def gradients(self, grad: Gradient) -> Sequence[Gradient]:
        """Split the gradient of the parameter into those of its matrices; factors of it are split as factors."""
        if not isinstance(grad, OuterProduct):
            return self.matrices(grad)
        return [grad.rows(start, start + self.rows) for start in range(0, grad.shape[0], self.rows)]

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """Split a tensor of the parameter's shape into its (M, N) matrices, as views where the strides allow it."""
        stacked = tensor.reshape(self.blocks or 1, self.rows, self.columns)
        return list(stacked.unbind(0))

    def used_matrices(self, grad: Tensor) -> Tensor:
        """Return for each matrix whether its gradient has an entry that is not zero, as a boolean vector."""
        return grad.reshape(self.blocks or 1, self.rows * self.columns).any(dim=1)


def plan_layout(name: str, parameter: Tensor, group: Mapping[str, Any], index: int) -> Layout:
    """Decide how the optimizer treats a parameter.

    A parameter keeps full-rank moments if its group is not low-rank, if it is empty or has fewer than two dimensions,
    or if the rank would save nothing (R >= min(M, N)).

    Args:
        name: full parameter name, for messages.
        parameter: any device, meta included.
        group: options of its parameter group.
        index: its position in the optimizer.
    Raises:
        ConfigError: for integer parameters, complex ones among projected matrices, and wrong options.
        ShapeError: if `split` does not divide the rows.
    """
    plan = plan_tensor(name, parameter, group)
    if plan is not None:
        return _tensor_layout(name, parameter, group, index, plan)
    if projects_tensors(group):  # its vectors, matrices and small tensors keep full-rank moments
        group = {**group, "low_rank": False}
    if not parameter.is_floating_point():
        raise ConfigError(
            f"optimizer: '{name}' has dtype={parameter.dtype}; expected a floating-point parameter. "
            "Leave it out of the parameter groups or freeze it."
        )
    shape = tuple(parameter.shape)
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    blocks, rows, columns = _matrices_of(name, shape, group)
    smaller = min(rows, columns)
    can_project = group["low_rank"] and len(shape) >= 2 and parameter.numel() > 0
    rank = resolve_rank(group["rank"], smaller) if can_project else None
    if rank is None or rank >= smaller:
        rule = rules.get(group["rule"]).full_rank_rule
        layout = Layout(
            name, index, shape, dtype, None, "right", None, None, rows, columns, rule, {}, {}, None, None, None
        )
        return layout._with_moments(shape, group)
    side = choose_side(rows, columns, group["proj_type"])
    seeded = group["basis_method"] if group["basis_method"] in SEEDED_METHODS else None
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    basis_bits = group["basis_bits"] or (16 if half else 32)
    layout = Layout(
        name=name,
        index=index,
        shape=shape,
        dtype=dtype,
        rank=rank,
        side=side,
        alternative=None,
        blocks=blocks,
        rows=rows,
        columns=columns,
        rule=group["rule"],
        moments={},
        moment_shapes={},
        basis=None if seeded else basis_storage_for(basis_bits, group["basis_renorm"]),
        seeded_basis=seeded,
        residual=group["residual"],
        product_dtype=torch.bfloat16 if parameter.dtype == torch.bfloat16 and basis_bits <= 16 else dtype,
        error_feedback=group["error_feedback"],
        has_full_periods=group["full_rank_probability"] > 0,
        queue_size=group["lazy"]["queue_size"] if group["lazy"] else 0,
    ).on_side(side, group)
    if group["proj_type"] == "min_memory" and blocks is None and seeded is None:
        left, right = (layout.on_side(s, group).nbytes() for s in ("left", "right"))
        layout = replace(layout, alternative=cheaper_side(side, left, right))
    return layout


def _tensor_layout(name: str, parameter: Tensor, group: Mapping[str, Any], index: int, plan: TensorPlan) -> Layout:
    is_double = parameter.dtype in (torch.float64, torch.complex128)
    storages, shapes = moment_storages(plan, group)
    shape = tuple(parameter.shape)
    return Layout(
        name=name,
        index=index,
        shape=shape,
        dtype=torch.float64 if is_double else torch.float32,
        rank=None if plan.kind == "none" else max(plan.ranks or plan.shape),
        side="right",
        alternative=None,
        blocks=None,
        rows=shape[0] if shape else 1,
        columns=math.prod(shape[1:]),
        rule=group["rule"],
        moments=storages,
        moment_shapes=shapes,
        basis=factor_storage(plan, group),
        seeded_basis=None,
        residual=None,
        tensor=plan,
    )


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
    return (stack or 1) * split, rows // split, columns


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
