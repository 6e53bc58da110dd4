"""Orthonormal columns for any finite matrix, by matrix products where possible.

Cholesky QR is mostly matrix products, which use all cores well. Householder QR waits for all threads at every column:
2736 x 256 took 16 ms with one thread and 4.7 s with two beside busy processes. Cholesky QR needs a well-conditioned
input, so columns are normalised first and its success is checked. Where it fails, Householder QR on one thread takes
over; that one returns orthonormal columns for every input, also a rank-deficient or zero one.
Shapes: M rows, R columns, M >= R; `...` batch.
Source: Yamamoto et al., Roundoff error analysis of the CholeskyQR2 algorithm, ETNA 44 (2015), 306-326.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from featherweight.errors import ShapeError

# If the largest row sum of |Y.T @ Y - 1| is below this, the condition number of Y is below sqrt(3), and one more pass
# of Cholesky QR leaves columns that are orthonormal to rounding.
_NEARLY_ORTHONORMAL = 0.5
_MAX_PASSES = 3


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Run small LAPACK calls on a CPU with one thread, and restore the number of threads after.

    With two threads and any other busy process such calls were measured 10 to 170 times slower, since threads wait for
    each other at every column. Does nothing on other devices. The number of threads is a setting of the whole process.

    Args:
        device: where the tensors are.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def orthonormalize(matrix: Tensor) -> Tensor:
    """Return orthonormal columns whose leading ones span what the leading columns of `matrix` span.

    Column j of the result has a positive inner product with what column j of the input adds to the span, so the result
    moves continuously with the input. Columns that add nothing are replaced by deterministic orthonormal ones.

    Args:
        matrix: (..., M, R) finite float32 or float64, M >= R, any scale. Not modified.
    Returns:
        (..., M, R), same dtype, with ``|P.T @ P - 1|`` below 1e-5 (float32) in every entry.
    Raises:
        ShapeError: if M < R.
    Cost: 3*M*R*R FLOPs for nearly orthonormal columns, 6*M*R*R usually, one wait for the device; else Householder QR.
    Example:
        >>> orthonormalize(torch.tensor([[3.0], [4.0]])).flatten().tolist()
        [0.6000000238418579, 0.800000011920929]
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        raise ShapeError(
            f"orthonormalize: matrix={tuple(matrix.shape)} has more columns than rows; expected (..., M, R) with "
            f"M >= R. Drop columns."
        )
    columns = normalize_columns(matrix)
    result, is_orthonormal = _cholesky_qr(columns)
    if not bool(is_orthonormal.all()):
        failed = ~is_orthonormal
        if matrix.ndim == 2:
            return _householder_qr(columns)
        result[failed] = _householder_qr(columns[failed])
    return result


def polar_factor(matrix: Tensor) -> Tensor:
    """Return (nearly) the orthogonal matrix that is nearest to a square matrix, by matrix products alone.

    Six Newton-Schulz steps that grow small singular values about 3.4-fold each, then five that bring all to 1. Those
    below 1e-4 of the norm, for which any direction would do, stay smaller.

    Args:
        matrix: (R, R) float32 or float64 with singular values up to about 1. Not modified.
    Returns:
        (R, R) with the same singular vectors.
    Cost: 33 products of R x R matrices.
    Source: Jordan et al., Muon, 2024 (first steps); Higham, Functions of Matrices, 2008, chapter 8.
    """
    return newton_schulz(newton_schulz(matrix, (3.4445, -4.7750, 2.0315), 6), (1.875, -1.25, 0.375), 5)


def newton_schulz(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Apply ``x -> a x + b x^3 + c x^5`` to the singular values of a matrix, several times.

    Args:
        matrix: (A, B) float32 or float64, A <= B for the lowest cost. Not modified.
        coefficients: a, b, c.
        steps: how often.
    Returns:
        (A, B) with the same singular vectors.
    Cost: each step 4*A*A*B + 2*A*A*A FLOPs.
    """
    a, b, c = coefficients
    for _ in range(steps):
        gram = matrix @ matrix.mT
        mixed = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        matrix = torch.addmm(matrix, mixed, matrix, beta=a)
    return matrix


def well_conditioned(matrix: Tensor) -> Tensor:
    """Return a well-conditioned matrix with the same column span: one pass of Cholesky QR, or Householder QR.

    Half the cost of `orthonormalize`, enough between two products of a power iteration.

    Args:
        matrix: (..., M, R) finite float32 or float64, any scale. Columns beyond M come back normalised only.
    Returns:
        (..., M, R).
    """
    if matrix.shape[-2] < matrix.shape[-1]:
        return normalize_columns(matrix)
    columns = normalize_columns(matrix)
    with one_thread(matrix.device):
        factor, info = torch.linalg.cholesky_ex(columns.mT @ columns)
        if bool((info == 0).all()):
            return torch.linalg.solve_triangular(factor.mT, columns, upper=True, left=False)
    return _householder_qr(columns)


def normalize_columns(matrix: Tensor) -> Tensor:
    """Return the matrix with columns of norm 1; columns of zeros stay zero.

    Args:
        matrix: (..., M, R) finite, any scale: divided by its largest magnitude first, so that no square under- or
            overflows.
    """
    # Plain reductions: on a CPU, vector_norm over columns was measured 2 to 10 times slower.
    largest = matrix.abs().amax(dim=-2, keepdim=True)
    scaled = matrix / torch.where(largest > 0, largest, 1)
    norm = scaled.square().sum(dim=-2, keepdim=True).sqrt_()
    return scaled.div_(torch.where(norm > 0, norm, 1))


def _cholesky_qr(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat Cholesky QR until columns were nearly orthonormal before the last pass; also return where they were."""
    eye = torch.eye(columns.shape[-1], dtype=columns.dtype, device=columns.device)
    done = torch.zeros(columns.shape[:-2], dtype=torch.bool, device=columns.device)
    for _ in range(_MAX_PASSES):
        gram = columns.mT @ columns
        # NaN from a failed pass compares as False.
        done = (gram - eye).abs().sum(dim=-1).amax(dim=-1) < _NEARLY_ORTHONORMAL
        with one_thread(columns.device):
            factor, info = torch.linalg.cholesky_ex(gram)
            columns = torch.linalg.solve_triangular(factor.mT, columns, upper=True, left=False)
        if bool(done.all()) or bool((info != 0).any() if columns.ndim == 2 else (info != 0).all()):
            break
    return columns, done


def _householder_qr(columns: Tensor) -> Tensor:
    with one_thread(columns.device):
        basis, triangle = torch.linalg.qr(columns)
    sign = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(basis.dtype)
    return basis * sign[..., None, :]
