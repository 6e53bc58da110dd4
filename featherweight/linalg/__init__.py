"""Linear algebra on gradients: bases of subspaces and the projections onto them. Tensors in, tensors out."""

from featherweight.linalg.basis import BASIS_METHODS, BasisMethod, fit_left_basis
from featherweight.linalg.orthonormal import orthonormalize
from featherweight.linalg.random import keyed_generator, random_orthonormal
from featherweight.linalg.subspace import MatrixSubspace, Subspace

__all__ = [
    "BASIS_METHODS",
    "BasisMethod",
    "MatrixSubspace",
    "Subspace",
    "fit_left_basis",
    "keyed_generator",
    "orthonormalize",
    "random_orthonormal",
]
