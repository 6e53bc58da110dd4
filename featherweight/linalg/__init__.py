"""Linear algebra on gradients: bases of subspaces and the projections onto them. Tensors in, tensors out.

Names load on first use: options that name them are declared without torch.
"""

from typing import TYPE_CHECKING, Any

from featherweight.lazy_names import load_name

if TYPE_CHECKING:
    from featherweight.linalg.basis import BASIS_METHODS, BasisMethod, fit_left_basis
    from featherweight.linalg.orthonormal import orthonormalize
    from featherweight.linalg.random import keyed_generator, random_orthonormal
    from featherweight.linalg.subspace import MatrixSubspace, Subspace

_LAZY = {
    "BASIS_METHODS": "featherweight.linalg.basis",
    "BasisMethod": "featherweight.linalg.basis",
    "MatrixSubspace": "featherweight.linalg.subspace",
    "Subspace": "featherweight.linalg.subspace",
    "fit_left_basis": "featherweight.linalg.basis",
    "keyed_generator": "featherweight.linalg.random",
    "orthonormalize": "featherweight.linalg.orthonormal",
    "random_orthonormal": "featherweight.linalg.random",
}

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


def __getattr__(name: str) -> Any:
    return load_name(__name__, _LAZY, name)


def __dir__() -> list[str]:
    return sorted(__all__)
