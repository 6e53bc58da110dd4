"""Linear algebra on gradients: bases of subspaces and the projections onto them. Tensors in, tensors out."""

from featherweight.linalg.subspace import MatrixSubspace, Subspace

__all__ = ["MatrixSubspace", "Subspace"]
