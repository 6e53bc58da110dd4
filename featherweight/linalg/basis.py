"""Bases that span the leading left singular vectors of a matrix.

`fit_left_basis` is the one entry; for the right side pass the transposed view, which is not copied. Products run on all
cores, the small LAPACK calls around them on one thread. All methods give the same result for the same input, and fixed
signs: the entry of largest magnitude of each column is positive.
Shapes: M rows, N columns, R rank, K = R + oversampling; `...` batch.
Source: Halko et al., arXiv 0909.4061, Algorithms 4.3-4.4 (randomized); LDAdam, arXiv 2410.16103 (one warm iteration).
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from featherweight.errors import LISTED, ConfigError, NumericsError, ShapeError, did_you_mean
from featherweight.linalg.orthonormal import one_thread, orthonormalize, well_conditioned
from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.linalg.random import random_normal, random_orthonormal

BasisMethod = Literal["auto", "svd", "gram", "randomized", "subspace_iteration", "random"]
BASIS_METHODS: tuple[str, ...] = get_args(BasisMethod)

# Products of two or three gradients stay far from the limits of float32 within this range of magnitudes; a matrix
# outside is scaled first, which costs a copy.
_SAFE_MAGNITUDE = (1e-9, 1e9)


@torch.no_grad()
def fit_left_basis(
    matrix: Gradient,
    rank: int,
    method: str = "auto",
    *,
    old: Tensor | None = None,
    generator: torch.Generator,
    oversampling: int = 8,
    power_iterations: int | None = None,
) -> Tensor:
    """Return orthonormal columns that span (nearly) the leading left singular vectors.

    Methods, with the share of the best possible energy for singular values i**-0.8, 512 x 1376, rank 128:

    - "svd": exact. Orders of magnitude slower than the others.
    - "gram": eigenvectors of the smaller Gram matrix; exact down to singular values of 3e-4 of the largest (float32).
    - "randomized": products with a random matrix; 0.97 without, 0.997 with one power iteration (the default).
    - "subspace_iteration": one warm iteration ``qr(G @ (G.T @ old))``; 0.998 from a nearby `old`. Its columns continue
      those of `old`.
    - "random": random orthonormal columns, whatever the matrix is.
    - "auto": "subspace_iteration" if there is an `old`, else "randomized".

    A rank-deficient matrix, or rank > N, is completed by further orthonormal columns. A zero matrix gives `old` if
    there is one, else random columns.

    Args:
        matrix: (..., M, N) finite float, any strides and scale. bf16 and fp16 are computed in float32. Or the factors
            of an (M, N) matrix, which "svd" and "gram" multiply out, and the others do not.
        rank: R, 1 <= R <= M.
        method: one of the names above.
        old: (..., M, R) the basis to continue from; used by "subspace_iteration" and "auto".
        generator: source of random numbers; see `keyed_generator`. Methods without randomness draw nothing from it,
            unless the matrix is zero or rank > N.
        oversampling: extra random columns of "randomized".
        power_iterations: of "randomized"; None means 1. More give more energy for two products each.
    Returns:
        (..., M, R) float32 (float64 for float64) with ``|P.T @ P - 1| < 1e-5``.
    Raises:
        ConfigError: if rank or method is not allowed, or "subspace_iteration" has no `old`.
        ShapeError: if the matrix has fewer than two dimensions or no elements, or `old` does not fit.
        NumericsError: if the matrix holds NaN or infinity.
    Cost: "randomized" 2*M*N*K*(1 + 2*q) FLOPs and about 4*K*K*(M + q*(M + N)); "subspace_iteration" 4*M*N*R + 6*M*R*R;
        "gram" 2*M*N*min(M, N) + 9*min(M, N)**3. One or two waits for the device.
    """
    _require_arguments(matrix, rank, method, old)
    if method == "auto":
        method = "randomized" if old is None else "subspace_iteration"
    if isinstance(matrix, OuterProduct):
        if method in ("svd", "gram"):
            matrix = matrix.dense()
    elif matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.float()
    old = None if old is None else old.to(matrix.dtype)
    matrix, is_zero = _at_safe_scale(matrix)
    rows, columns = matrix.shape[-2:]
    within = min(rank, rows, columns)
    if method == "random":
        basis = _random_like(matrix, rank, generator)
    elif method == "svd":
        assert isinstance(matrix, Tensor)
        with one_thread(matrix.device):
            basis = torch.linalg.svd(matrix, full_matrices=False).U[..., :within]
    elif method == "gram":
        assert isinstance(matrix, Tensor)
        basis = _gram_basis(matrix, within)
    elif method == "randomized":
        sketch_size = min(within + oversampling, rows, columns)
        iterations = 1 if power_iterations is None else power_iterations
        basis = _randomized_basis(matrix, within, sketch_size, iterations, generator)
    else:
        assert old is not None
        basis = orthonormalize(matrix @ (matrix.mT @ old))
    if basis.shape[-1] < rank:
        more = random_normal((*matrix.shape[:-1], rank - within), generator=generator, like=basis)
        basis = orthonormalize(torch.cat([basis, more], dim=-1))
    if any(is_zero):
        fallback = _random_like(matrix, rank, generator) if old is None else orthonormalize(old)
        mask = torch.tensor(is_zero, device=matrix.device).view(*matrix.shape[:-2], 1, 1)
        basis = torch.where(mask, fallback, basis)
    return fix_signs(basis)


def fix_signs(basis: Tensor) -> Tensor:
    """Return the basis with signs such that each column's entry of largest magnitude is positive (ties: the first).

    Args:
        basis: (..., M, R).
    """
    largest = basis.gather(-2, basis.abs().argmax(dim=-2, keepdim=True))
    return basis * torch.where(largest < 0, -1.0, 1.0).to(basis.dtype)


def _gram_basis(matrix: Tensor, rank: int) -> Tensor:
    rows, columns = matrix.shape[-2:]
    is_wide = rows <= columns
    gram = matrix @ matrix.mT if is_wide else matrix.mT @ matrix
    leading = _leading_eigenvectors(gram, rank)
    return leading if is_wide else orthonormalize(matrix @ leading)


def _randomized_basis(
    matrix: Gradient, rank: int, sketch_size: int, power_iterations: int, generator: torch.Generator
) -> Tensor:
    like = torch.empty(0, dtype=matrix.dtype, device=matrix.device)
    test_NK = random_normal((*matrix.shape[:-2], matrix.shape[-1], sketch_size), generator=generator, like=like)
    sketch_MK = matrix @ test_NK
    for _ in range(power_iterations):
        # Without new columns after each product the small singular vectors would drown in rounding of the large ones.
        right_NK = well_conditioned(matrix.mT @ well_conditioned(sketch_MK))
        sketch_MK = matrix @ right_NK
    if sketch_size == rank:
        return orthonormalize(sketch_MK)
    # Keep the R leading left singular vectors of the sketch; they come out ordered and almost orthogonal.
    return orthonormalize(sketch_MK @ _leading_eigenvectors(sketch_MK.mT @ sketch_MK, rank))


def _leading_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    with one_thread(gram.device):
        vectors = torch.linalg.eigh(gram).eigenvectors
    return vectors[..., -rank:].flip(-1)


def _random_like(matrix: Gradient, rank: int, generator: torch.Generator) -> Tensor:
    rows, batch = matrix.shape[-2], tuple(matrix.shape[:-2])
    return random_orthonormal(rows, rank, batch=batch, generator=generator, dtype=matrix.dtype, device=matrix.device)


def _at_safe_scale(matrix: Gradient) -> tuple[Gradient, list[bool]]:
    """Return the matrix at a scale where products cannot under- or overflow, and which of the batch are zero."""
    if isinstance(matrix, OuterProduct):
        magnitudes = [matrix.magnitude()]
    else:
        magnitude = torch.maximum(matrix.amax(dim=(-2, -1)), -matrix.amin(dim=(-2, -1)))
        magnitudes = magnitude.flatten().tolist()
    if not all(map(math.isfinite, magnitudes)):
        bad = sum(not math.isfinite(each) for each in magnitudes)
        raise NumericsError(
            f"fit_left_basis: matrix={tuple(matrix.shape)} holds NaN or infinity in {bad} of {len(magnitudes)} "
            f"matrices; expected finite values. Skip this step and keep the old basis."
        )
    low, high = _SAFE_MAGNITUDE
    if not all(low <= each <= high or each == 0 for each in magnitudes):
        if isinstance(matrix, OuterProduct):
            return matrix.normalized(), [each == 0 for each in magnitudes]
        matrix = matrix / torch.where(magnitude > 0, magnitude, 1)[..., None, None]
    return matrix, [each == 0 for each in magnitudes]


def _require_arguments(matrix: Gradient, rank: int, method: str, old: Tensor | None) -> None:
    if matrix.ndim < 2 or 0 in matrix.shape[-2:]:
        raise ShapeError(
            f"fit_left_basis: matrix={tuple(matrix.shape)} is no matrix; expected (..., M, N) with M, N >= 1. "
            f"Reshape the gradient to two dimensions."
        )
    if method not in BASIS_METHODS:
        raise ConfigError(
            f"fit_left_basis: method='{method}' is unknown; expected one of {', '.join(BASIS_METHODS)}. "
            f"{did_you_mean(method, BASIS_METHODS, otherwise=LISTED)}"
        )
    rows = matrix.shape[-2]
    if not 1 <= rank <= rows:
        raise ConfigError(
            f"fit_left_basis: rank={rank} does not fit matrix={tuple(matrix.shape)}; expected 1 <= rank <= {rows}. "
            f"Lower the rank."
        )
    if old is None and method == "subspace_iteration":
        raise ConfigError(
            "fit_left_basis: method='subspace_iteration' has old=None; expected the basis to continue from. "
            "Pass old=, or use 'auto' or 'randomized' for the first basis."
        )
    if old is not None and old.shape != (*matrix.shape[:-1], rank):
        raise ShapeError(
            f"fit_left_basis: old={tuple(old.shape)} does not fit matrix={tuple(matrix.shape)} at rank={rank}; "
            f"expected {(*matrix.shape[:-1], rank)}. Pass the basis of the same parameter, side and rank."
        )
