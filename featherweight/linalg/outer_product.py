"""The gradient of a linear layer's weight as what it is: a sum of outer products that need not be formed.

For ``y = x W^T`` with output gradient g the gradient of W is ``G = g^T x``. Its product with a thin matrix costs
2*T*R*(M + N) FLOPs from the factors; forming G costs 2*T*M*N and a tensor of the weight's size.
Shapes: T tokens, M rows, N columns, R, K thin.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import ShapeError


@dataclass(frozen=True, eq=False)
class OuterProduct:
    """The matrix ``left^T @ right``, known by its factors.

    Products with a thin matrix run in the dtype of the factors and come out in float32 (float64).

    Args:
        left: (T, M) float; the output gradient of a linear layer.
        right: (T, N), same dtype; its input.
    Raises:
        ShapeError: if the factors do not fit.
    Example:
        >>> gradient = OuterProduct(torch.ones(5, 3), torch.ones(5, 4))
        >>> gradient.shape, (gradient @ torch.ones(4, 1)).flatten().tolist()
        (torch.Size([3, 4]), [20.0, 20.0, 20.0])
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or len(self.left) != len(self.right):
            raise ShapeError(
                f"OuterProduct: left={tuple(self.left.shape)} and right={tuple(self.right.shape)} do not fit; expected "
                "(T, M) and (T, N). Flatten the dimensions of the tokens of both."
            )

    @property
    def shape(self) -> torch.Size:
        """(M, N)."""
        return torch.Size((self.left.shape[1], self.right.shape[1]))

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of products: float64 for float64 factors, else float32."""
        return torch.float64 if self.left.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.left.device

    @property
    def mT(self) -> "OuterProduct":  # noqa: N802 (the name of torch's property)
        """The transposed matrix; nothing is copied."""
        return OuterProduct(self.right, self.left)

    def __matmul__(self, test_NK: Tensor) -> Tensor:
        """Return the product with a thin matrix, (M, K)."""
        inner_TK = self.right @ test_NK.to(self.right.dtype)
        return (self.left.mT @ inner_TK).to(self.dtype)

    def rows(self, start: int, stop: int) -> "OuterProduct":
        """Return the rows [start, stop) as a view."""
        return OuterProduct(self.left[:, start:stop], self.right)

    def project(self, left: Tensor | None, right: Tensor | None) -> Tensor:
        """Return ``P^T G``, ``G Q`` or ``P^T G Q`` for the bases P (M, R) and Q (N, R).

        Args:
            left: P, or None.
            right: Q, or None.
        Cost: 2*T*R*(M + N) FLOPs with one basis.
        """
        dtype = self.left.dtype
        rows = self.left if left is None else self.left @ left.to(dtype)
        columns = self.right if right is None else self.right @ right.to(dtype)
        return (rows.mT @ columns).to(self.dtype)

    def dense(self) -> Tensor:
        """Return the matrix itself, (M, N). Cost: 2*T*M*N FLOPs and its memory."""
        return (self.left.mT @ self.right).to(self.dtype)

    def any(self) -> bool:
        """Say whether both factors have an element that is not zero at one token. Waits for the device."""
        return bool((self.left.any(dim=1) & self.right.any(dim=1)).any())

    def is_finite(self) -> bool:
        """Say whether both factors are finite. Waits for the device."""
        return math.isfinite(self.magnitude())

    def magnitude(self) -> float:
        """Return the product of the largest magnitudes of both factors; NaN or infinite if they hold such elements."""
        if not len(self.left):
            return 0.0
        largest = [torch.maximum(factor.amax(), -factor.amin()).double() for factor in (self.left, self.right)]
        return float(largest[0] * largest[1])

    def normalized(self) -> "OuterProduct":
        """Return the matrix divided by a number, such that both factors have magnitude 1."""
        return OuterProduct(*(factor / factor.abs().amax().clamp_min(1e-300) for factor in (self.left, self.right)))


Gradient = Tensor | OuterProduct
"""A gradient matrix (M, N), formed or not."""
