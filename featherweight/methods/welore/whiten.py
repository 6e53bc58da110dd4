"""Truncation that minimises the error of a layer's output instead of that of its weight.

For inputs X (N x T) with second moments H = X X^T = L L^T, the best matrix of rank R in the norm of (W - W_R) X is the
truncated SVD of W L, taken back by L^-1; the error is the rest of the spectrum of W L, exactly.
Shapes: M rows, N columns, R rank, T tokens.
Sources: SVD-LLM, arXiv 2403.07378 (whitening); SVD-LLM v2, arXiv 2503.12340 (eigendecomposition instead of Cholesky).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from featherweight.linalg.orthonormal import one_thread

FIRST_DAMPING, LARGEST_DAMPING = 1e-6, 1e-2
FLOOR = 1e-12


class Root(NamedTuple):
    """L and its inverse, float64."""

    root_NN: Tensor
    inverse_NN: Tensor


@dataclass
class Moments:
    """Sums over the tokens that a layer reads."""

    second_NN: Tensor
    """Sum of x x^T, float64."""
    first_N: Tensor
    """Sum of x, float64."""
    tokens: int = 0

    @classmethod
    def zeros(cls, columns: int, device: torch.device | str = "cpu") -> "Moments":
        """Return empty sums."""
        second_NN = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        return cls(second_NN, torch.zeros(columns, dtype=torch.float64, device=device))

    def add_(self, x_TN: Tensor) -> None:
        """Add tokens; products in float32 (float64 for float64), the sum over batches in float64."""
        wide_TN = x_TN if x_TN.dtype == torch.float64 else x_TN.float()
        self.second_NN += wide_TN.mT @ wide_TN
        self.first_N += wide_TN.sum(0, dtype=torch.float64)
        self.tokens += x_TN.shape[0]

    def centred(self) -> Tensor:
        """Return the second moments about the mean, (N, N)."""
        mean_N = self.first_N / max(1, self.tokens)
        return self.second_NN - self.tokens * torch.outer(mean_N, mean_N)


def root_of(second_NN: Tensor, tokens: int | None = None) -> Root:
    """Return L and L^-1 with L L^T = H + a little on the diagonal.

    The little is 1e-6 of the mean of the diagonal, and up to 1e-2 where there are fewer tokens than columns, since
    directions without data would else cost nothing.

    Args:
        second_NN: H, symmetric, not negative.
        tokens: of which H is the sum; None for many.
    Cost: one eigendecomposition in float64.
    """
    columns = second_NN.shape[0]
    damping = FIRST_DAMPING
    if tokens is not None and tokens < columns:
        damping = LARGEST_DAMPING
    wide_NN = second_NN.double()
    mean = float(wide_NN.diagonal().mean()) if columns else 0.0
    with one_thread(second_NN.device):
        values_N, vectors_NN = torch.linalg.eigh((wide_NN + wide_NN.mT) / 2)
    values_N = values_N + damping * mean
    values_N = values_N.clamp_min(max(FLOOR * float(values_N.max()), 1e-300) if columns else 1.0)
    root_N = values_N.sqrt()
    return Root(vectors_NN * root_N, (vectors_NN / root_N).mT)


def whitened_spectrum(matrix_MN: Tensor, root: Root) -> Tensor:
    """Return the singular values of W L, (Q,) float64, descending."""
    with one_thread(matrix_MN.device):
        return torch.linalg.svdvals(_times(matrix_MN, root.root_NN)).double().cpu()


def whitened_factors(matrix_MN: Tensor, root: Root, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors whose product is the best of its rank on the inputs; their leading parts are best, too.

    Args:
        matrix_MN: W, float32 or float64.
        root: of the inputs' second moments.
        rank: R.
    Returns:
        (M, R) and (R, N) in W's dtype.
    """
    with one_thread(matrix_MN.device):
        left, values, right = torch.linalg.svd(_times(matrix_MN, root.root_NN), full_matrices=False)
    scale_R = values[:rank].sqrt()
    back_RN = right[:rank].double() @ root.inverse_NN
    return left[:, :rank] * scale_R, (scale_R.double()[:, None] * back_RN).to(matrix_MN.dtype)


def refit_left(matrix_MN: Tensor, right_RN: Tensor, cross_NN: Tensor, second_NN: Tensor) -> Tensor:
    """Return the left factor that best gives W T from the inputs X', in closed form.

    Args:
        matrix_MN: W.
        right_RN: right factor, kept.
        cross_NN: T X'^T, where T are the inputs whose outputs are wished.
        second_NN: X' X'^T.
    Returns:
        (M, R): W T X'^T V^T (V X' X'^T V^T)^-1, in W's dtype.
    """
    right64 = right_RN.double()
    target_MR = matrix_MN.double() @ (cross_NN @ right64.mT)
    gram_RR = right64 @ second_NN @ right64.mT
    gram_RR = gram_RR + FIRST_DAMPING * gram_RR.diagonal().mean() * torch.eye(len(gram_RR), device=gram_RR.device)
    with one_thread(matrix_MN.device):
        return torch.linalg.solve(gram_RR, target_MR, left=False).to(matrix_MN.dtype)


def _times(matrix_MN: Tensor, root_NN: Tensor) -> Tensor:
    """Multiply in float64, so that small inputs are not lost, and return W's dtype."""
    return (matrix_MN.double() @ root_NN).to(matrix_MN.dtype)
