"""Sketches of gradients that are never whole: products with thin matrices, from which a basis or a norm follows.

Shapes: gradient (M, N); sketch ``G^T Omega`` (N, K) for a right basis, ``G Omega`` (M, K) for a left one, with K = R,
or R + 8 where nothing is remembered; S columns of the sketch of the norm.
Source: Halko et al., arXiv 0909.4061.
"""

import torch
from torch import Tensor

from featherweight.linalg.basis import fit_left_basis, fix_signs
from featherweight.linalg.orthonormal import orthonormalize
from featherweight.linalg.random import keyed_generator, random_normal
from featherweight.optim.step.matrix import ProjectedMatrix
from featherweight.optim.step.matrix_layout import MatrixLayout

NORM_COLUMNS = 8
"""Random columns that estimate the norm of what lies outside the subspace."""

OVERSAMPLING = 8
_NORM, _SKETCH = 101, 102  # tell the random numbers of one matrix apart


def norm_key(matrix: ProjectedMatrix, step: int | None = None) -> tuple[int, ...]:
    """Return the key of the random numbers of a step's sketch of the norm; without `step`, of the next one."""
    step = matrix.counter("step") if step is None else step
    return (matrix.group["seed"], matrix.layout.index, matrix.number, step, _NORM)


def norm_matrix(layout: MatrixLayout, key: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the random (N, S) matrix whose product with a gradient estimates the gradient's norm."""
    shape = (layout.columns, NORM_COLUMNS)
    generator = keyed_generator(*key, device=device)
    return torch.randn(shape, generator=generator, dtype=layout.dtype, device=device) / NORM_COLUMNS**0.5


def input_sketch_matrix(matrix: ProjectedMatrix, *, estimates_norm: bool) -> Tensor | None:
    """Return the (N, R + S) matrix whose product with a linear layer's input is all that its gradient's core needs.

    Args:
        matrix: of a weight (M, N) that is multiplied with its input on the side of N.
        estimates_norm: see `Summing`.
    Returns:
        Basis and matrix of the norm side by side; None while the input itself is needed: behind a left basis, before
        the first basis, and where a refresh is due.
    """
    layout = matrix.layout
    if layout.side == "left" or layout.blocks is not None or not matrix.has_subspace() or matrix.refresh_is_due():
        return None
    return basis_and_norm_matrix(matrix, norm_key(matrix) if estimates_norm else None)


def basis_and_norm_matrix(matrix: ProjectedMatrix, key: tuple[int, ...] | None) -> Tensor:
    """Return the right basis and the matrix of the norm with this key side by side, (N, R + S); (N, R) without key."""
    basis = matrix.subspace().right
    assert basis is not None
    return basis if key is None else torch.cat([basis, norm_matrix(matrix.layout, key, basis.device)], dim=1)


def remembered_core(matrix: ProjectedMatrix) -> Tensor | None:
    """Return what is remembered of the cores of the whole matrix, from which a sketch can begin; None if nothing is.

    A collective where processes hold rows of the moments.
    """
    if matrix.counter("moment_step") == 0 or "exp_avg" not in matrix.layout.moments:
        return None
    mean, shard = matrix.layout.whole_core(matrix.mean_core()), matrix.layout.shard
    if shard is not None and matrix.layout.side == "right":
        mean = shard.whole(mean)
    return mean if bool(mean.any()) else None


def sketch_key(matrix: ProjectedMatrix, *step: int) -> tuple[int, ...]:
    """Return the key of the random numbers of a sketch, at a step, or of the basis that is fitted to it."""
    return (matrix.group["seed"], matrix.layout.index, matrix.number, *step, _SKETCH)


def begin_sketch(
    basis_NR: Tensor, mean_MR: Tensor | None, rows: int, *, smoothing: float, key: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return the matrix Omega (M, K) of a sketch ``G^T Omega`` for a right basis, and what the sketch starts from.

    Args:
        basis_NR: the present basis. For a left basis all is transposed: (M, R), then (N, R) and (N, K).
        mean_MR: what is remembered of the cores; None if nothing is.
        rows: M.
        smoothing: share of the remembered part, as in `featherweight.optim.policies.refresh.smoothed_iteration`.
        key: of the random numbers where nothing is remembered.
    """
    if mean_MR is None:
        width = min(basis_NR.shape[1] + OVERSAMPLING, rows, len(basis_NR))
        omega = random_normal((rows, width), generator=keyed_generator(*key), like=basis_NR)
        return omega, basis_NR.new_zeros(len(basis_NR), width)
    omega = orthonormalize(mean_MR)
    return omega, basis_NR @ (mean_MR.mT @ omega) * (smoothing / (1 - smoothing))


def basis_of_sketch(sketch_NK: Tensor, rank: int, key: tuple[int, ...]) -> Tensor:
    """Return the (N, R) basis that a sketch gives: its span, or the leading directions of an oversampled one."""
    if sketch_NK.shape[1] == rank:
        return fix_signs(orthonormalize(sketch_NK))
    return fit_left_basis(sketch_NK, rank, "gram", generator=keyed_generator(*key))
