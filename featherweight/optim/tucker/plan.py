"""What is decided once for a tensor: its view, ranks, and how each of its states is stored.

Complex numbers are held as pairs of reals with a last axis of 2: moments in 8 bits, checkpoints in any format and sums
over processes need nothing new, and what is complex is a matter of arithmetic alone.
Shapes: tensor (n_1, .., n_D), core (r_1, .., r_D) or, by frequency, (F, r, n_2); K entries in the sparse branch.
"""

import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.linalg.tucker import upcast
from featherweight.linalg.tucker_ranks import tucker_ranks

TENSOR_COUNTERS = ("step", "moment_step", "next_refresh", "refresh_count")


@dataclass(frozen=True)
class TensorPlan:
    """How a tensor is projected."""

    kind: str
    """A `TensorKind`, or "none" for a tensor that keeps moments of its own size."""
    is_complex: bool
    """Whether its numbers are complex, of a complex dtype or as pairs."""
    by_modulus: bool
    """Whether one second moment belongs to a complex number, or one to each of its parts."""
    shape: tuple[int, ...]
    """(n_1, .., n_D) of the view that is projected, without the axis of pairs."""
    ranks: tuple[int, ...]
    """r_k of each mode; (r,) for "slices"; () as long as they wait for a first gradient (`is_open`)."""
    sparse_numel: int = 0
    """K."""
    stores_sparse_index: bool = False
    """Whether the indices are kept; random ones are drawn anew from the seed."""
    may_skip: bool = False
    """Whether the captured energy is kept, by which a refresh may be left out."""
    budget: int | None = None
    """Entries that a core may have whose ranks follow its first gradient; None if they follow from the shape."""

    residual: str | None = None
    """What becomes of the gradient outside of the subspace; anything but None needs the whole gradient."""

    @property
    def is_open(self) -> bool:
        """Whether the ranks are not known yet. Shapes and bytes are then the largest that the budget allows."""
        return self.budget is not None and not self.ranks

    @property
    def spectral_modes(self) -> tuple[int, ...]:
        """Modes whose ranks a budget decides."""
        return tuple(range(len(self.shape))) if self.kind == "tucker" else (0, 1)

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Shape of the core, without the axis of pairs."""
        if self.is_open:
            assert self.budget is not None
            return (self.budget,)
        if self.kind == "slices":
            return (math.prod(self.shape[2:]), self.ranks[0], self.shape[1])
        return self.ranks if self.kind != "none" else self.shape

    @property
    def auto_scale(self) -> float:
        """``sqrt(N / core entries)``: with it an update has the root mean square of a full one."""
        return math.sqrt(math.prod(self.shape) / math.prod(self.core_shape))

    @property
    def share(self) -> float:
        """Entries that have moments, over all."""
        return (math.prod(self.core_shape) + self.sparse_numel) / math.prod(self.shape)

    @property
    def index_dtype(self) -> torch.dtype:
        """Type of stored indices: 32 bits wherever they fit."""
        return torch.int32 if math.prod(self.shape) < 2**31 else torch.int64

    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """State name and shape of each stored basis, with the axis of pairs."""
        pair = (2,) if self.is_complex else ()
        if self.kind == "none":
            return {}
        if self.kind == "slices":
            return {"basis": (math.prod(self.shape[2:]), self.shape[0], self.ranks[0], *pair)}
        if self.is_open:
            largest = self._largest_ranks()
            return {f"basis_{mode}": (self.shape[mode], rank, *pair) for mode, rank in largest.items() if rank}
        return {
            f"basis_{mode}": (size, rank, *pair)
            for mode, (size, rank) in enumerate(zip(self.shape, self.ranks, strict=True))
            if rank < size and not self.selects(mode)
        }

    def _largest_ranks(self) -> dict[int, int]:
        """Return the largest rank with a basis that the budget allows each mode: a mode of full rank has none."""
        assert self.budget is not None
        fixed = math.prod(n for k, n in enumerate(self.shape) if k not in self.spectral_modes)
        return {mode: min(self.shape[mode] - 1, self.budget // fixed) for mode in self.spectral_modes}

    def index_shapes(self) -> dict[str, tuple[int, ...]]:
        """State name and shape of each stored list of indices."""
        shapes: dict[str, tuple[int, ...]] = {
            f"index_{mode}": (rank,)
            for mode, (size, rank) in enumerate(zip(self.shape, self.ranks, strict=False))
            if self.selects(mode) and rank < size
        }
        return {**shapes, "sparse_index": (self.sparse_numel,)} if self.stores_sparse_index else shapes

    def selects(self, mode: int) -> bool:
        """Say whether a mode keeps indices instead of a basis."""
        return self.kind == "select" and mode >= 2

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the integer counters."""
        if self.kind == "none":
            return ("step",)
        return (*TENSOR_COUNTERS, "sparse_step") if self.sparse_numel else TENSOR_COUNTERS

    def moment_shapes(self, group: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """State name and stored shape of each moment."""
        shapes: dict[str, tuple[int, ...]] = {}
        branches = [("", self.core_shape), *([("sparse_", (self.sparse_numel,))] if self.sparse_numel else [])]
        for prefix, shape in branches:
            pair = (*shape, 2) if self.is_complex else shape
            shapes[f"{prefix}exp_avg"] = pair
            if group["rule"] != "sgd":
                shapes[f"{prefix}exp_avg_sq"] = shape if self.by_modulus else pair
        return shapes

    def other_bytes(self) -> int:
        """Bytes of indices, of the captured energy, and of ranks that a gradient has decided."""
        indices = sum(math.prod(shape) for shape in self.index_shapes().values()) * self.index_dtype.itemsize
        ranks = 0 if self.budget is None else len(self.shape) * torch.int64.itemsize
        return indices + ranks + (torch.float32.itemsize if self.may_skip else 0)

    def create_others(self, state: MutableMapping[str, Tensor], device: torch.device) -> None:
        """Add indices, the captured energy and decided ranks to a new state."""
        for name, shape in self.index_shapes().items():
            state[name] = torch.zeros(shape, dtype=self.index_dtype, device=device)
        if self.may_skip:
            state["captured"] = torch.zeros((), dtype=torch.float32)
        if self.budget is not None:
            state["ranks"] = torch.tensor(self.ranks or (0,) * len(self.shape), dtype=torch.int64)

    def sum_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of what layer-wise accumulation keeps: the core and the sparse branch of the sum."""
        return (math.prod(self.core_shape) + self.sparse_numel) * dtype.itemsize * (2 if self.is_complex else 1)

    # ---- between what is stored and what is computed with

    def numbers(self, stored: Tensor) -> Tensor:
        """Return the numbers of an array of pairs (or reals), as a view for float32 and float64."""
        return torch.view_as_complex(stored) if self.is_complex else stored

    def tensor_of(self, grad: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a gradient as the tensor that is projected, in the type of the arithmetic (float64 or float32)."""
        if self.is_complex and not grad.is_complex():
            grad = torch.view_as_complex(grad.to(dtype).contiguous())
        grad = upcast(grad.resolve_conj())
        wide = torch.complex128 if self.is_complex else torch.float64
        return (grad.to(wide) if dtype == torch.float64 else grad).reshape(self.shape)

    def pairs(self, numbers: Tensor) -> Tensor:
        """Return the inverse of `numbers`; also takes what is stored as pairs already."""
        return torch.view_as_real(numbers.resolve_conj()) if numbers.is_complex() else numbers


def projects_tensors(defaults: Mapping[str, Any]) -> bool:
    """Say whether an optimizer with these defaults (or a group of one) projects tensors."""
    return "rank_counts" in defaults


def plan_tensor(name: str, parameter: Tensor, group: Mapping[str, Any]) -> TensorPlan | None:
    """Decide how a tensor is projected; None for a parameter that is no business of tensors.

    A tensor keeps moments of its own size if its group is not low-rank, it has fewer than `min_numel` numbers or fewer
    than three modes longer than 1 (the core of a matrix is diagonal, and Adam would raise the rounding beside it to
    full steps), or its ranks would save nothing. Real ones among these are None: they take the usual ways.

    Args:
        name: full parameter name, for messages.
        parameter: any device, meta included.
        group: options of its parameter group.
    Raises:
        ConfigError: for a complex parameter in a group of projected matrices, or `complex_pair` without pairs.
    """
    is_pair = bool(group.get("complex_pair", False))
    is_complex = parameter.is_complex() or is_pair
    if not is_complex and not projects_tensors(group):
        return None
    if is_pair and (parameter.is_complex() or parameter.ndim == 0 or parameter.shape[-1] != 2):
        raise ConfigError(
            f"optimizer: '{name}' has shape={tuple(parameter.shape)} and dtype={parameter.dtype} under "
            f"complex_pair=True; "
            "expected a real parameter with a last axis of 2. Leave complex_pair out."
        )
    if is_complex and group["low_rank"] and not projects_tensors(group):
        raise ConfigError(
            f"optimizer: '{name}' has dtype={parameter.dtype}; expected a real matrix in a group that is projected. "
            f"Use "
            "TensorGaLoreAdamW (proj_type='matrix' for one side of a matrix), or low_rank=False."
        )
    if is_complex and group["rule"] not in ("adamw", "sgd", "muon"):
        raise ConfigError(
            f"optimizer: '{name}' has dtype={parameter.dtype}; expected a real parameter under "
            f"rule={group['rule']!r}. Use "
            "AdamW or TensorGaLoreAdamW."
        )
    shape = tuple(parameter.shape[:-1] if is_pair else parameter.shape)
    by_modulus = is_complex and group.get("complex_mode", "modulus") == "modulus"
    plan = _projected(shape, is_complex, by_modulus, group) if _may_project(shape, group) else None
    if plan is None and is_complex:
        plan = TensorPlan("none", True, by_modulus, shape, shape)
    return plan


def _may_project(shape: tuple[int, ...], group: Mapping[str, Any]) -> bool:
    numel = math.prod(shape)
    is_tensor = sum(size > 1 for size in shape) >= 3
    return projects_tensors(group) and group["low_rank"] and is_tensor and numel >= group["min_numel"]


def _projected(
    shape: tuple[int, ...], is_complex: bool, by_modulus: bool, group: Mapping[str, Any]
) -> TensorPlan | None:
    kind, rank, counts = group["proj_type"], group["rank"], group["rank_counts"]
    view: tuple[int, ...]
    ranks: tuple[int, ...]
    budget: int | None = None
    if rank == "auto":
        view, ranks = shape, ()
        fixed = math.prod(shape[2:]) if kind == "tucker_channels" else 1
        budget = max(fixed, int(group["rank_budget"] * math.prod(shape)))
    elif kind == "matrix":
        cut = min(group["first_dims"], len(shape) - 1)
        view = (math.prod(shape[:cut]), math.prod(shape[cut:]))
        # One basis, on the smaller side: the right one for tall unfoldings and square ones, as GaLore does.
        mode = 1 if view[0] >= view[1] else 0
        small = _side_rank(rank, view[mode])
        ranks = tuple(small if k == mode else n for k, n in enumerate(view))
    elif kind == "slices":
        view, ranks = shape, (_side_rank(rank, shape[0]),)
    else:
        view = shape
        ranks = tucker_ranks(shape, rank, counts, (0, 1) if kind == "tucker_channels" else None)
    sparse = math.ceil(group["sparse_ratio"] * math.prod(shape)) if group["sparse_ratio"] > 0 else 0
    if ranks == view or (kind == "slices" and ranks[0] == shape[0]) or budget == math.prod(shape):
        return None
    return TensorPlan(
        kind,
        is_complex,
        by_modulus,
        view,
        ranks,
        sparse,
        stores_sparse_index=sparse > 0 and group["sparse_select"] != "randk",
        may_skip=group["skip_tol"] > 0,
        budget=budget,
        residual=_residual(group, is_complex),
    )


def _residual(group: Mapping[str, Any], is_complex: bool) -> str | None:
    """Return what a tensor does with its gradient outside of the subspace; measured for operators under Adam."""
    asked: str | None = group["residual"]
    if asked == "auto":
        return "equalized" if is_complex and group["rule"] == "adamw" else None
    return asked


def _side_rank(rank: Any, size: int) -> int:
    if isinstance(rank, list | tuple):
        rank = rank[0]
    return max(1, round(rank * size)) if isinstance(rank, float) else min(rank, size)
