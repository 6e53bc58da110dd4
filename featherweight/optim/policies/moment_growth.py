"""Moments of parameters that change their shape in the middle of training: what becomes of each.

State that has no meaning in the new shape (a low-rank projection, a factored second moment after a rotation) is dropped
and begins anew at the next step. `featherweight.optim.exchange` puts the parameters in their places.
Source: InRank, arXiv 2306.11250. Differs from the official code, which slices moments after a rotation and so mixes
those of unrelated directions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "variance", "exp_inf"})
"""States that hold squares or sizes of gradients; all others of the parameter's shape are linear in gradients."""

REDUCED_AXIS = {"row_var": 1, "col_var": 0, "exp_avg_sq_row": 1, "exp_avg_sq_col": 0}
"""Factored second moments of a matrix, and the axis over which they are means."""


@dataclass(frozen=True)
class Growth:
    """New slots at the end of an axis of a matrix. Old slots keep their bits.

    Moments of new slots are 0, their second moments the mean of the old ones along the axis: with 0 there, an Adam
    whose steps are counted from long ago would begin with an update of three times the learning rate.
    """

    axis: int
    size: int

    def linear(self, tensor: Tensor) -> Tensor:
        """Append zeros to what is linear in gradients."""
        return self._append(tensor, self.axis, 0.0)

    def square(self, tensor: Tensor) -> Tensor:
        """Append means to what is linear in squares of gradients."""
        return self._append(tensor, self.axis, None)

    def factored(self, tensor: Tensor, reduced_axis: int) -> Tensor | None:
        """Append means where the axis is there, leave the tensor where it is averaged over."""
        if reduced_axis == self.axis:
            return tensor.clone()
        return self._append(tensor, min(self.axis, tensor.ndim - 1), None)

    def _append(self, tensor: Tensor, axis: int, value: float | None) -> Tensor:
        shape = list(tensor.shape)
        shape[axis] = self.size - shape[axis]
        if value is None and tensor.shape[axis]:
            new = tensor.mean(axis, keepdim=True).expand(shape)
        else:
            new = tensor.new_zeros(shape)
        return torch.cat([tensor, new], axis)


@dataclass(frozen=True)
class Rotation:
    """A matrix in other coordinates: gradients become ``left @ G @ right`` (each of them may be missing).

    Second moments have no exact map; squares of the coefficients are right if gradients of the old coordinates are
    uncorrelated.
    """

    left: Tensor | None = None
    right: Tensor | None = None

    def linear(self, tensor: Tensor) -> Tensor:
        """Multiply."""
        return self._multiply(tensor, lambda matrix: matrix)

    def square(self, tensor: Tensor) -> Tensor:
        """Multiply with the squares."""
        return self._multiply(tensor, torch.square)

    def factored(self, tensor: Tensor, reduced_axis: int) -> Tensor | None:
        """Give up: means of squares over one axis have no answer."""
        return None

    def _multiply(self, tensor: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        result = tensor if self.left is None else of(self.left).to(tensor.dtype) @ tensor
        return result if self.right is None else result @ of(self.right).to(tensor.dtype)


ShapeChange = Growth | Rotation
"""How a tensor of the old shape becomes one of the new shape: what is `linear` in gradients, a `square`, a mean."""


def moved(key: str, value: Any, shape: torch.Size, change: ShapeChange) -> Any:
    """Return one entry of the state of a parameter of `shape` after a change; None if there is no answer."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if key in REDUCED_AXIS:
        return change.factored(value, REDUCED_AXIS[key])
    if value.shape != shape:
        return None
    return change.square(value) if key in SECOND_MOMENTS else change.linear(value)
