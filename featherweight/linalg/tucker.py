"""Subspaces of tensors: one orthonormal basis for each mode, or one for each frequency.

`TuckerSubspace` and `SliceSubspace` answer the questions of `Subspace` for tensors of any order, real or complex; a
complex projection uses the conjugate transpose. They are fitted by `featherweight.linalg.tucker_fit`.
Shapes: D modes of sizes n_k with ranks r_k; F frequencies (product of the modes behind the first two).
Source: Tensor-GaLore, arXiv 2501.02379.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Self

import torch
from torch import Tensor

from featherweight.errors import ShapeError


@dataclass(frozen=True, eq=False)
class TuckerSubspace:
    """All tensors ``C x_1 U_1 x_2 U_2 .. x_D U_D``, for any core C.

    Args:
        shape: (n_1, .., n_D).
        factors: for each mode (n_k, r_k) orthonormal columns, (r_k,) int64 indices that select instead of rotating, or
            None for a mode that stays as it is.
    Raises:
        ShapeError: if a factor does not fit its mode.
    Example:
        >>> subspace = TuckerSubspace((3, 5, 4), (torch.eye(3)[:, :2], None, torch.tensor([0, 3])))
        >>> subspace.project(torch.ones(3, 5, 4)).shape
        torch.Size([2, 5, 2])
    """

    shape: tuple[int, ...]
    factors: tuple[Tensor | None, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.factors):
            raise ShapeError(
                f"TuckerSubspace: factors={len(self.factors)} for {len(self.shape)} modes of {self.shape}; expected "
                "one for each. Pass None for a mode that stays as it is."
            )
        for mode, (size, factor) in enumerate(zip(self.shape, self.factors, strict=True)):
            if factor is None:
                continue
            fits = factor.ndim == 1 if _selects(factor) else factor.ndim == 2 and factor.shape[0] == size
            if not fits:
                raise ShapeError(
                    f"TuckerSubspace: factor {mode}={tuple(factor.shape)} {factor.dtype} does not fit a mode of size "
                    f"{size}; expected ({size}, r) columns or (r,) indices. Fit it from a tensor of this shape."
                )

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Shape of a core, (r_1, .., r_D)."""
        return tuple(n if u is None else u.shape[-1] for n, u in zip(self.shape, self.factors, strict=True))

    def project(self, grad: Tensor) -> Tensor:
        """Return the core ``G x_1 U_1^H .. x_D U_D^H``.

        Args:
            grad: (n_1, .., n_D), any strides; 16-bit types are computed in float32 or complex64. Not modified.
        Returns:
            (r_1, .., r_D).
        Raises:
            ShapeError: if the shape differs.
        Cost: products in the order of least work; see `contraction_order`.
        """
        _require_shape("project", "grad", grad, self.shape)
        grad = upcast(grad)
        for mode, factor in enumerate(self.factors):
            if factor is not None and _selects(factor):
                grad = grad.index_select(mode, factor)
        return contract(grad, [None if u is None or _selects(u) else u.mH for u in self.factors])

    def project_back(self, core: Tensor) -> Tensor:
        """Return the tensor of a core, ``C x_1 U_1 .. x_D U_D``; zero where an index was not selected.

        Args:
            core: (r_1, .., r_D). Not modified.
        Returns:
            (n_1, .., n_D); shares memory with the core if there is no factor.
        Raises:
            ShapeError: if the shape differs.
        """
        _require_shape("project_back", "core", core, self.core_shape)
        tensor = contract(upcast(core), [None if u is None or _selects(u) else u for u in self.factors])
        # Indices come last, so that the products run on the small tensor.
        for mode, factor in enumerate(self.factors):
            if factor is not None and _selects(factor):
                size = (*tensor.shape[:mode], self.shape[mode], *tensor.shape[mode + 1 :])
                tensor = tensor.new_zeros(size).index_copy_(mode, factor, tensor)
        return tensor

    def overlap(self, old: Self) -> tuple[Tensor | None, ...]:
        """Return ``Q_k = U_k^H V_k`` for the factors V_k of `old`, None for a mode without a factor.

        Raises:
            ShapeError: if only one of the two has a factor on a mode.
        Cost: 2*n_k*r_k*r_k a mode.
        """
        return tuple(_overlap(new, before) for new, before in zip(self.factors, old.factors, strict=True))

    def transform(self, core: Tensor, overlap: Sequence[Tensor | None]) -> Tensor:
        """Return ``C x_1 Q_1 .. x_D Q_D``: a core of the old subspace in coordinates of this one."""
        return contract(core, list(overlap))

    def energy(self, grad: Tensor) -> float:
        """Return the share of the squared norm of a tensor that this subspace captures."""
        return share_of(self.project(grad), grad)


@dataclass(frozen=True, eq=False)
class SliceSubspace:
    """One left basis for each frequency: slice m of the tensor lies in the span of the columns of ``basis[m]``.

    A gradient of a spectral layer has rank at most the batch size in each slice, so with r at least the batch size
    nothing is lost at the step of the refresh.

    Args:
        shape: (n_1, n_2, m_1, .., m_d).
        basis: (F, n_1, r) orthonormal columns.
    Raises:
        ShapeError: if they do not fit.
    """

    shape: tuple[int, ...]
    basis: Tensor

    def __post_init__(self) -> None:
        frequencies, rows = prod(self.shape[2:]), self.shape[0]
        if len(self.shape) < 3 or self.basis.ndim != 3 or self.basis.shape[:2] != (frequencies, rows):
            raise ShapeError(
                f"SliceSubspace: basis={tuple(self.basis.shape)} does not fit shape={self.shape}; expected "
                f"({frequencies}, {rows}, r) for a tensor of three or more modes. Fit it from a tensor of this shape."
            )

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Shape of a core, (F, r, n_2)."""
        return (self.basis.shape[0], self.basis.shape[-1], self.shape[1])

    def project(self, grad: Tensor) -> Tensor:
        """Return ``basis[m]^H G[:, :, m]`` for each frequency m, shape (F, r, n_2)."""
        _require_shape("project", "grad", grad, self.shape)
        return self.basis.mH @ slices_of(upcast(grad))

    def project_back(self, core: Tensor) -> Tensor:
        """Return the tensor (n_1, n_2, m_1, .., m_d) whose slices are ``basis[m] C[m]``."""
        _require_shape("project_back", "core", core, self.core_shape)
        return (self.basis @ upcast(core)).permute(1, 2, 0).reshape(self.shape).contiguous()

    def overlap(self, old: Self) -> tuple[Tensor | None, ...]:
        """Return (Q,) with ``Q[m] = new[m]^H old[m]``, shape (F, r, r)."""
        return (self.basis.mH @ old.basis,)

    def transform(self, core: Tensor, overlap: Sequence[Tensor | None]) -> Tensor:
        """Return ``Q[m] C[m]`` for each frequency."""
        (matrix,) = overlap
        return core if matrix is None else matrix @ core

    def energy(self, grad: Tensor) -> float:
        """Return the share of the squared norm of a tensor that this subspace captures."""
        return share_of(self.project(grad), grad)


TensorSubspace = TuckerSubspace | SliceSubspace


def slices_of(tensor: Tensor) -> Tensor:
    """View (n_1, n_2, m_1, .., m_d) as (F, n_1, n_2)."""
    return tensor.reshape(tensor.shape[0], tensor.shape[1], -1).permute(2, 0, 1)


def contract(tensor: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Return ``X x_1 A_1 .. x_D A_D`` in the order of least work.

    Args:
        tensor: (n_1, .., n_D).
        matrices: (r_k, n_k) for each mode, or None.
    Returns:
        (r_1, .., r_D).
    """
    outputs = tuple(n if a is None else a.shape[0] for n, a in zip(tensor.shape, matrices, strict=True))
    chosen = tuple(mode for mode, matrix in enumerate(matrices) if matrix is not None)
    for mode in contraction_order(tuple(tensor.shape), outputs, chosen):
        matrix = matrices[mode]
        assert matrix is not None
        tensor = mode_product(tensor, matrix, mode)
    return tensor


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Return ``X x_mode A``: contract axis `mode` of a tensor with the second axis of a matrix.

    The first and the last mode are one product on a view, an inner mode a batched one; nothing is permuted.

    Args:
        tensor: (.., n, ..).
        matrix: (r, n).
        mode: which axis, from 0.
    Returns:
        (.., r, ..), contiguous.
    """
    shape, dtype = tensor.shape, torch.promote_types(tensor.dtype, matrix.dtype)
    tensor, matrix = tensor.contiguous().to(dtype), matrix.to(dtype)
    if mode == tensor.ndim - 1:
        product = tensor.view(-1, shape[-1]) @ matrix.mT
    else:
        product = matrix @ tensor.view(prod(shape[:mode]), shape[mode], prod(shape[mode + 1 :]))
    return product.view(*shape[:mode], matrix.shape[0], *shape[mode + 1 :])


@lru_cache(maxsize=1024)
def contraction_order(inputs: tuple[int, ...], outputs: tuple[int, ...], modes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the order of mode products with the fewest multiplications.

    Args:
        inputs: sizes before.
        outputs: sizes after.
        modes: which modes are contracted.
    Cost: 2^|modes| * |modes| steps, once for each shape.
    Example:
        >>> contraction_order((128, 128, 128, 65), (91, 91, 91, 46), (0, 1, 2, 3))[0]
        3
    """
    # best[S]: cheapest way to have contracted exactly the modes of the set S.
    best: dict[frozenset[int], tuple[int, tuple[int, ...]]] = {frozenset(): (0, ())}
    for _ in modes:
        longer: dict[frozenset[int], tuple[int, tuple[int, ...]]] = {}
        for done, (cost, order) in best.items():
            numel = prod(outputs[k] if k in done else n for k, n in enumerate(inputs))
            for mode in modes:
                if mode not in done:
                    candidate = (cost + numel * outputs[mode], (*order, mode))
                    key = done | {mode}
                    longer[key] = min(longer.get(key, candidate), candidate)
        best = longer
    return next(iter(best.values()))[1]


def upcast(tensor: Tensor) -> Tensor:
    """Return a tensor in a type that arithmetic supports: float32 for 16-bit floats, complex64 for complex32."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor.to(torch.complex64) if tensor.dtype == torch.complex32 else tensor


def share_of(core: Tensor, grad: Tensor) -> float:
    """Return ``||core||^2 / ||grad||^2``, 0 for a zero gradient."""
    total = squared_norm(grad)
    return squared_norm(core) / total if total > 0 else 0.0


def squared_norm(tensor: Tensor) -> float:
    """Return the sum of squared moduli. Squares of float32 stay inside its range for norms of 1e-19 to 1e19."""
    return float(torch.linalg.vector_norm(upcast(tensor)).double().square())


def _selects(factor: Tensor) -> bool:
    return factor.dtype == torch.int64


def _overlap(new: Tensor | None, old: Tensor | None) -> Tensor | None:
    if new is None and old is None:
        return None
    if new is None or old is None or _selects(new) != _selects(old):
        raise ShapeError(
            "TuckerSubspace.overlap: one of the two has no factor, or another kind of factor, on a mode; expected the "
            "same kinds. Compare subspaces of the same parameter."
        )
    if _selects(new):
        return (new[:, None] == old).to(torch.get_default_dtype())
    return new.mH @ old


def _require_shape(where: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ShapeError(
            f"TensorSubspace.{where}: {name}={tuple(tensor.shape)} does not fit; expected {tuple(shape)}. "
            "Fit the subspace from a gradient of the tensor's shape."
        )
