"""The comparison that decides whether a changed computation is the old one."""

import torch
from torch import Tensor


def difference(found: Tensor, expected: Tensor, *, tolerance: float) -> float | None:
    """Return the largest difference of two tensors if it is larger than rounding, else None.

    Args:
        found: what the changed computation gives.
        expected: what the original one gives; NaN and infinity must be where they are in `found`.
        tolerance: relative to the largest finite entry of `expected`.
    Example:
        >>> difference(torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]), tolerance=1e-2)
        0.09999990463256836
        >>> difference(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), tolerance=1e-2)
    """
    largest = float(expected.detach().nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    if torch.allclose(found, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True):
        return None
    return float((found - expected).abs().max())
