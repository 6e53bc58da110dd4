"""The comparison that decides whether a changed computation is the old one."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a block without dropout, and leave the model's modes and the random generators as they are."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False  # not eval(), of which a module may have its own with effects of its own
        with torch.random.fork_rng():
            yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


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
