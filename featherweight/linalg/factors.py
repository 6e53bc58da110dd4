"""Low-rank factors of a matrix: truncation, balance, and an interpolative form that is always smaller than the matrix.

Shapes: M rows, N columns, Q = min(M, N), R rank. A matrix of rank R is ``left_MR @ right_RN``, both weighted by the
roots of the singular values, in descending order of these.
Sources: PIFA, arXiv 2501.19090 (storing independent rows and coefficients); Goreinov et al., How to find a good
submatrix, 2010 (exchange of rows until no coefficient is large).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from featherweight.linalg.orthonormal import one_thread
from featherweight.linalg.spectrum import GRAM_SIDE, gram

LARGEST_COEFFICIENT = 2.0
"""Rows are exchanged until no coefficient of the interpolative form is larger."""


class Interpolation(NamedTuple):
    """A matrix of rank R as R of its own rows, and every other row as a combination of these."""

    pivots_RN: Tensor
    coefficients_SR: Tensor
    """S = M - R other rows."""
    positions_M: Tensor
    """int32; row i of the matrix is row positions[i] of the pivots followed by the other rows."""


def factorize(matrix_MN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors of a rank, balanced, in descending order of the singular values.

    Args:
        matrix_MN: (M, N), float32 or float64.
        rank: R, 1 <= R <= Q.
    Returns:
        (M, R) and (R, N); their product is the truncated SVD. Factors of a lower rank are their first columns and rows.
    Cost: an SVD; from Q = 1024 on in float32, an eigendecomposition of the Gram matrix and two products instead.
    """
    with one_thread(matrix_MN.device):
        if matrix_MN.dtype == torch.float64 or min(matrix_MN.shape) < GRAM_SIDE:
            left_MQ, values_Q, right_QN = torch.linalg.svd(matrix_MN, full_matrices=False)
            root_R = values_Q[:rank].sqrt()
            return left_MQ[:, :rank] * root_R, root_R[:, None] * right_QN[:rank]
        squares, vectors = torch.linalg.eigh(gram(matrix_MN))
    # The vectors are orthonormal to rounding, so that projecting on them is the best approximation, whatever the
    # rounding of the values; a value near zero only needs a floor for the balance.
    vectors_QR = vectors.flip(1)[:, :rank].contiguous()
    root_R = squares.flip(0)[:rank].clamp_min(float(squares[-1]) * 1e-10).sqrt().sqrt()
    if matrix_MN.shape[0] <= matrix_MN.shape[1]:
        return vectors_QR * root_R, (vectors_QR.mT @ matrix_MN) / root_R[:, None]
    return (matrix_MN @ vectors_QR) / root_R, root_R[:, None] * vectors_QR.mT


def product_spectrum(left_MR: Tensor, right_RN: Tensor) -> Tensor:
    """Return the singular values of a product of thin factors, without forming it.

    Returns:
        (min(R, M, N),) descending; all further singular values of the product are zero.
    Cost: two thin QR decompositions and an SVD of R x R: 2*(M+N)*R*R + O(R^3).
    """
    with one_thread(left_MR.device):
        triangle_left = torch.linalg.qr(left_MR, mode="r").R
        triangle_right = torch.linalg.qr(right_RN.mT, mode="r").R
        return torch.linalg.svdvals(triangle_left @ triangle_right.mT)


def rebalance(left_MR: Tensor, right_RN: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product that are again balanced and in the order of the singular values.

    Cost: as `product_spectrum`, with vectors.
    """
    with one_thread(left_MR.device):
        base_left, triangle_left = torch.linalg.qr(left_MR)
        base_right, triangle_right = torch.linalg.qr(right_RN.mT)
        inner_left, values, inner_right = torch.linalg.svd(triangle_left @ triangle_right.mT, full_matrices=False)
    root = values.sqrt()
    return (base_left @ inner_left) * root, root[:, None] * (inner_right @ base_right.mT)


def interpolate(left_MR: Tensor, right_RN: Tensor) -> Interpolation:
    """Write a product of factors as R of its rows and coefficients of the others: R * (M + N - R) numbers.

    Rows are chosen by elimination with row exchanges, then exchanged further until no coefficient exceeds 2 in size,
    so that storing the coefficients in few bits loses little.

    Args:
        left_MR: (M, R) of full column rank, R <= M; float32 or float64.
        right_RN: (R, N).
    Cost: 2*M*R*R FLOPs, and 2*(M-R)*R for each exchange.
    """
    rows, rank = left_MR.shape
    with one_thread(left_MR.device):
        # Balanced columns: the choice of rows must not depend on how the singular values are split over the factors.
        scale = left_MR.norm(dim=0).clamp_min(torch.finfo(left_MR.dtype).tiny)
        packed, exchanges = torch.linalg.lu_factor(left_MR / scale)
        order = _order_of(exchanges, rows)
        lower = packed.tril(-1)
        lower[:rank] += torch.eye(rank, dtype=packed.dtype, device=packed.device)
        # C L1 = L2
        coefficients_SR = torch.linalg.solve_triangular(
            lower[:rank], lower[rank:], upper=False, left=False, unitriangular=True
        )
    for _ in range(4 * rank):
        if coefficients_SR.numel() == 0:
            break
        worst = int(coefficients_SR.abs().argmax())
        row, column = divmod(worst, rank)
        pivot = coefficients_SR[row, column].clone()
        if float(pivot.abs()) <= LARGEST_COEFFICIENT:
            break
        # Exchange pivot `column` with row `row`: a rank-one change of the coefficients.
        change_S = coefficients_SR[:, column].clone()
        change_S[row] += 1
        change_R = coefficients_SR[row].clone()
        change_R[column] -= 1
        coefficients_SR = coefficients_SR - change_S[:, None] * (change_R / pivot)
        order[column], order[rank + row] = order[rank + row].clone(), order[column].clone()
    positions_M = torch.empty(rows, dtype=torch.int32)
    positions_M[order] = torch.arange(rows, dtype=torch.int32)
    return Interpolation(left_MR[order[:rank]] @ right_RN, coefficients_SR, positions_M.to(left_MR.device))


def _order_of(exchanges: Tensor, rows: int) -> Tensor:
    """Turn LAPACK's list of exchanges (from 1) into the order of the rows."""
    order = list(range(rows))
    for i, other in enumerate(exchanges.tolist()):
        order[i], order[other - 1] = order[other - 1], order[i]
    return torch.tensor(order, dtype=torch.int64)
