"""Random tensors in the shapes of gradients."""

import torch
from torch import Tensor


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A tensor whose unfoldings have decaying spectra, so that the order of eigenvalues is well defined."""
    tensor = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    for mode, size in enumerate(shape):
        decay = torch.arange(1, size + 1, dtype=torch.float64) ** -0.7
        tensor = tensor * decay.view(-1, *[1] * (len(shape) - 1 - mode))
    return tensor
