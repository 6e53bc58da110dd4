"""Subspaces of matrix gradients: project, project back, compare.

A subspace holds one or two bases with orthonormal columns. Low-rank optimizers keep their moments in its coordinates.
Leading batch dimensions (stacked experts) are allowed everywhere and must be equal: every matrix has its own basis.
Shapes: M rows, N columns, R rank; `...` batch.
Source: GaLore, arXiv 2403.03507, Algorithm 2.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from featherweight.errors import ShapeError
from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.tiles import tiles

# Elements of a gradient that are converted to float32 at once: 16 MiB, small beside any layer that is worth projecting.
TILE_ELEMENTS = 1 << 22

_T = TypeVar("_T")


class Subspace(Protocol):
    """What a low-rank optimizer asks of a subspace."""

    def project(self, grad: Gradient) -> Tensor:
        """Return the coordinates of `grad`: the core."""
        ...

    def project_back(self, core: Tensor) -> Tensor:
        """Return the full tensor whose coordinates are `core`."""
        ...

    def overlap(self, old: Self) -> tuple[Tensor | None, ...]:
        """Return, per side, the matrix that turns coordinates in `old` into coordinates in this subspace."""
        ...


@dataclass(frozen=True, eq=False)
class MatrixSubspace:
    """A subspace of matrices, given by a left basis, a right basis, or both.

    Args:
        left: (..., M, R) orthonormal columns, or None for a right subspace.
        right: (..., N, R) orthonormal columns, or None for a left subspace.
    Raises:
        ShapeError: if both are None, a basis has fewer than two dimensions, or the batch dimensions differ.
    Example:
        >>> subspace = MatrixSubspace(left=torch.eye(3)[:, :2])
        >>> subspace.project(torch.ones(3, 5)).shape
        torch.Size([2, 5])
    """

    left: Tensor | None = None
    right: Tensor | None = None

    def __post_init__(self) -> None:
        if self.left is None and self.right is None:
            raise ShapeError(
                "MatrixSubspace: left=None, right=None leaves no basis; expected at least one. "
                "Pass left=, right= or both."
            )
        for name, basis in (("left", self.left), ("right", self.right)):
            if basis is not None and basis.ndim < 2:
                raise ShapeError(
                    f"MatrixSubspace: {name}={tuple(basis.shape)} is no matrix; expected (..., rows, rank). "
                    f"Pass one column per direction."
                )
        if self.left is not None and self.right is not None and self.left.shape[:-2] != self.right.shape[:-2]:
            raise ShapeError(
                f"MatrixSubspace: left={tuple(self.left.shape)} and right={tuple(self.right.shape)} differ in their "
                f"batch dimensions; expected equal ones. Fit both bases from the same gradient."
            )

    @property
    def rank(self) -> int:
        """Number of columns of the basis (the larger one of a two-sided subspace)."""
        return max(basis.shape[-1] for basis in (self.left, self.right) if basis is not None)

    def core_shape(self, shape: torch.Size | tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the core of a gradient of shape `shape`.

        Args:
            shape: (..., M, N).
        Returns:
            (..., R, N) for a left, (..., M, R) for a right, (..., R, R) for a two-sided subspace.
        Raises:
            ShapeError: if the bases do not fit `shape`.
        """
        self._require_fit("core_shape", "shape", tuple(shape))
        rows = shape[-2] if self.left is None else self.left.shape[-1]
        columns = shape[-1] if self.right is None else self.right.shape[-1]
        return (*shape[:-2], rows, columns)

    def project(self, grad: Gradient) -> Tensor:
        """Return the coordinates of a gradient: ``P.T @ G``, ``G @ Q`` or ``P.T @ G @ Q``.

        Accumulates in float32 (float64 if either side is float64). A bf16 or fp16 gradient beside a wider basis is
        converted tile by tile, so that no float32 copy of the whole gradient exists. If gradient and basis are both
        bf16, the product runs in bf16 (its sums are still float32 inside the GEMM).

        Args:
            grad: (..., M, N) float, any strides, not modified; or its factors, which are multiplied in their own dtype.
        Returns:
            The core, float32 or float64; shape as in `core_shape`.
        Raises:
            ShapeError: if the bases do not fit `grad`.
        Cost: 2*M*N*R FLOPs a side; the core and at most `TILE_ELEMENTS` converted elements are allocated.
        Source: arXiv 2403.03507, Algorithm 2. Differs from the official code: float32 sums, no cast of a float32 basis.
        """
        self._require_fit("project", "grad", tuple(grad.shape))
        if isinstance(grad, OuterProduct):
            return grad.project(self.left, self.right)
        dtype = _compute_dtype(grad, self.left, self.right)
        bases = [basis for basis in (self.left, self.right) if basis is not None]
        if grad.dtype == torch.bfloat16 and all(basis.dtype == torch.bfloat16 for basis in bases):
            return _product(grad, self.left, self.right).to(dtype)
        left, right = _cast(self.left, dtype), _cast(self.right, dtype)
        if grad.dtype == dtype or grad.numel() <= TILE_ELEMENTS:
            return _product(grad.to(dtype), left, right)
        core = torch.empty(self.core_shape(grad.shape), dtype=dtype, device=grad.device)
        for index in itertools.product(*map(range, grad.shape[:-2])):
            _project_by_tiles(grad[index], _pick(left, index), _pick(right, index), out=core[index])
        return core

    def project_back(self, core: Tensor) -> Tensor:
        """Return the full tensor of a core: ``P @ C``, ``C @ Q.T`` or ``P @ C @ Q.T``.

        If core and basis are both bf16, the product runs in bf16, as in `project`.

        Args:
            core: shape as in `core_shape`. Not modified.
        Returns:
            (..., M, N), float32 (float64 if core or basis is).
        Raises:
            ShapeError: if the bases do not fit `core`.
        Cost: 2*M*N*R FLOPs; the result is allocated. To change a weight use `add_back_`, which needs no such tensor.
        """
        self._require_core_fit("project_back", core)
        dtype = _compute_dtype(core, self.left, self.right)
        tensors = [tensor for tensor in (core, self.left, self.right) if tensor is not None]
        product_dtype = torch.bfloat16 if all(each.dtype == torch.bfloat16 for each in tensors) else dtype
        rows, columns = self._back_factors(core.to(product_dtype), product_dtype)
        return (rows @ columns).to(dtype)

    @torch.no_grad()
    def add_back_(self, weight: Tensor, core: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
        """Write ``weight <- beta * weight + alpha * project_back(core)`` with one GEMM in place.

        Args:
            weight: (..., M, N) float, any strides. Modified in place; its dtype is the dtype of the GEMM. A bf16 weight
                is rounded to nearest, which loses small updates: round stochastically after `project_back` instead.
            core: shape as in `core_shape`.
            alpha: factor of the update.
            beta: factor of the old weight; 1 - lr * weight_decay applies decoupled decay in the same pass.
        Returns:
            `weight`.
        Raises:
            ShapeError: if bases, core and weight do not fit.
        Cost: 2*M*N*R FLOPs; no M x N temporary. A two-sided core takes the cheaper small product first.
        """
        if self.core_shape(weight.shape) != tuple(core.shape):
            raise ShapeError(
                f"MatrixSubspace.add_back_: core={tuple(core.shape)} does not fit weight={tuple(weight.shape)}; "
                f"expected core={self.core_shape(weight.shape)}. "
                f"Project a gradient of the weight's shape with this subspace."
            )
        rows, columns = self._back_factors(core.to(weight.dtype), weight.dtype)
        _add_product_(weight, rows, columns, alpha=alpha, beta=beta)
        return weight

    def overlap(self, old: Self) -> tuple[Tensor | None, Tensor | None]:
        """Return ``(C_left, C_right)`` with ``C = new.T @ old``, which carries moments from the old to this subspace.

        Args:
            old: a subspace of the same matrices with the same sides; its rank may differ.
        Returns:
            Per side (..., R_new, R_old) float32 (float64 if a basis is), None for a side without a basis.
        Raises:
            ShapeError: if sides or shapes differ.
        Cost: 2*M*R*R FLOPs a side.
        Source: LDAdam, arXiv 2410.16103, section 3.
        """
        return _overlap("left", self.left, old.left), _overlap("right", self.right, old.right)

    def energy(self, grad: Tensor) -> Tensor:
        """Return the share of the squared norm of `grad` that this subspace captures.

        Args:
            grad: (..., M, N) float.
        Returns:
            (...) float64: ``||core||^2 / ||grad||^2``, in [0, 1] up to rounding for orthonormal bases; 0 for a zero
            gradient. A quantised basis is not orthonormal and may give slightly more than 1.
        Raises:
            ShapeError: if the bases do not fit `grad`.
        Cost: one projection and one pass over `grad`; sums in float64, so that no gradient scale under- or overflows.
        """
        captured, total = _squared_norm(self.project(grad)), _squared_norm(grad)
        return torch.where(total > 0, captured / total, torch.zeros_like(total))

    def _back_factors(self, core: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the two factors whose product is the full tensor, with all the small work done."""
        left, right = _cast(self.left, dtype), _cast(self.right, dtype)
        if right is None:
            return _present(left), core
        if left is None:
            return core, right.mT
        # The last GEMM costs 2*M*N*R with R the rank of the side that is still to do; the small product comes first.
        rows, columns = left.shape[-2], right.shape[-2]
        left_first = left.shape[-1] * rows * core.shape[-1] + rows * columns * core.shape[-1]
        right_first = right.shape[-1] * columns * core.shape[-2] + rows * columns * core.shape[-2]
        return (left @ core, right.mT) if left_first <= right_first else (left, core @ right.mT)

    def _require_fit(self, where: str, name: str, shape: tuple[int, ...]) -> None:
        for side, basis, axis in (("left", self.left, -2), ("right", self.right, -1)):
            if basis is None:
                continue
            if len(shape) != basis.ndim or shape[:-2] != tuple(basis.shape[:-2]) or shape[axis] != basis.shape[-2]:
                size = "..., M, N" if basis.ndim > 2 else "M, N"
                raise ShapeError(
                    f"MatrixSubspace.{where}: {name}={shape} does not fit the {side} basis {tuple(basis.shape)}; "
                    f"expected ({size}) with {'M' if axis == -2 else 'N'}={basis.shape[-2]} and the basis' batch "
                    f"dimensions. Fit the basis from a gradient of this shape."
                )

    def _require_core_fit(self, where: str, core: Tensor) -> None:
        for side, basis, axis in (("left", self.left, -2), ("right", self.right, -1)):
            if basis is None:
                continue
            if core.ndim != basis.ndim or core.shape[:-2] != basis.shape[:-2] or core.shape[axis] != basis.shape[-1]:
                raise ShapeError(
                    f"MatrixSubspace.{where}: core={tuple(core.shape)} does not fit the {side} basis "
                    f"{tuple(basis.shape)}; expected size {basis.shape[-1]} in dimension {axis} and the basis' batch "
                    f"dimensions. Pass what project() of this subspace returned."
                )


def _compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return float64 if any tensor is float64, else float32."""
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _present(value: _T | None) -> _T:
    assert value is not None
    return value


def _pick(tensor: Tensor | None, index: tuple[int, ...]) -> Tensor | None:
    return None if tensor is None else tensor[index]


def _right_first(rows: int, columns: int, left_rank: int, right_rank: int) -> bool:
    """Return whether ``P.T @ (G @ Q)`` costs no more than ``(P.T @ G) @ Q``."""
    return (
        rows * columns * right_rank + rows * left_rank * right_rank
        <= rows * columns * left_rank + columns * left_rank * right_rank
    )


def _product(grad: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    if left is None:
        return grad @ _present(right)
    if right is None:
        return left.mT @ grad
    if _right_first(grad.shape[-2], grad.shape[-1], left.shape[-1], right.shape[-1]):
        return left.mT @ (grad @ right)
    return (left.mT @ grad) @ right


def _row_tiles(rows: int, columns: int) -> Iterator[slice]:
    return (slice(*tile) for tile in tiles(rows, max(1, TILE_ELEMENTS // max(1, columns))))


def _project_by_tiles(grad: Tensor, left: Tensor | None, right: Tensor | None, out: Tensor) -> None:
    """Project one (M, N) matrix, converting `TILE_ELEMENTS` elements of it at a time."""
    rows, columns = grad.shape
    right_first = right is not None and (left is None or _right_first(rows, columns, left.shape[1], right.shape[1]))
    if left is None:
        sums = out
    else:
        width = right.shape[1] if right is not None and right_first else columns
        sums = torch.zeros(left.shape[1], width, dtype=out.dtype, device=out.device)
    for tile in _row_tiles(rows, columns):
        part = grad[tile].to(out.dtype)
        if right is not None and right_first:
            part = part @ right
        if left is None:
            sums[tile] = part
        else:
            sums.addmm_(left[tile].mT, part)
    if left is not None:
        out.copy_(sums if right is None or right_first else sums @ right)


def _add_product_(weight: Tensor, rows: Tensor, columns: Tensor, *, alpha: float, beta: float) -> None:
    if weight.ndim == 2:
        weight.addmm_(rows, columns, alpha=alpha, beta=beta)
    elif weight.ndim == 3:
        weight.baddbmm_(rows, columns, alpha=alpha, beta=beta)
    else:
        for each in zip(weight, rows, columns, strict=True):
            _add_product_(*each, alpha=alpha, beta=beta)


def _overlap(side: str, new: Tensor | None, old: Tensor | None) -> Tensor | None:
    if new is None and old is None:
        return None
    if new is None or old is None or new.shape[:-1] != old.shape[:-1]:
        shapes = [None if basis is None else tuple(basis.shape) for basis in (new, old)]
        raise ShapeError(
            f"MatrixSubspace.overlap: {side} basis {shapes[0]} does not fit the old one {shapes[1]}; expected equal "
            f"shapes but for the rank. Compare subspaces of the same parameter and side."
        )
    dtype = _compute_dtype(new, old)
    return new.to(dtype).mT @ old.to(dtype)


def _squared_norm(matrices: Tensor) -> Tensor:
    total = torch.zeros(matrices.shape[:-2], dtype=torch.float64, device=matrices.device)
    for index in itertools.product(*map(range, matrices.shape[:-2])):
        matrix = matrices[index]
        for tile in _row_tiles(*matrix.shape):
            total[index] += matrix[tile].double().square().sum()
    return total
