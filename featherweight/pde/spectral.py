"""Sine and cosine transforms and shell averages, by torch's FFT.

Shapes: s points in an axis, M inner points of an axis with zero ends.
"""

import torch
from torch import Tensor


def cosine_synthesis(coefficients: Tensor, dim: int) -> Tensor:
    """Return the inverse of the orthonormal DCT-II along an axis: ``x_j = sum_k w_k c_k cos(pi k (j + 1/2) / s)``.

    Args:
        coefficients: real, any shape.
        dim: axis of length s.
    Returns:
        Same shape; the sum of squares is that of the coefficients.
    Cost: one FFT of length 2 s.
    """
    moved = coefficients.movedim(dim, -1)
    size = moved.shape[-1]
    weight = torch.full((size,), (2 / size) ** 0.5, dtype=moved.dtype, device=moved.device)
    weight[0] = (1 / size) ** 0.5
    index = torch.arange(size, dtype=moved.dtype, device=moved.device)
    shifted = moved * weight * torch.exp(1j * torch.pi * index / (2 * size))
    waves = torch.fft.ifft(shifted, n=2 * size, dim=-1) * (2 * size)
    return waves.real[..., :size].movedim(-1, dim)


def sine_transform(values: Tensor, dim: int) -> Tensor:
    """Return the orthonormal DST-I along an axis; it is its own inverse.

    Args:
        values: real, any shape; the axis holds M inner points between two zeros.
        dim: which axis.
    Cost: one real FFT of length 2 (M + 1).
    """
    moved = values.movedim(dim, -1)
    inner = moved.shape[-1]
    zero = moved.new_zeros(*moved.shape[:-1], 1)
    odd = torch.cat([zero, moved, zero, -moved.flip(-1)], dim=-1)
    sums = -torch.fft.rfft(odd, dim=-1).imag[..., 1 : inner + 1]
    return (sums / (2 * (inner + 1)) ** 0.5).movedim(-1, dim)


def shell_spectrum(fields: Tensor) -> Tensor:
    """Return the mean squared modulus summed over each shell of wavenumbers ``round(|k|)``.

    Args:
        fields: (n, s_1, .., s_d) real.
    Returns:
        (K,) with K = s // 2 + 1 for the smallest s; its sum is the mean square of the fields, less the corner modes.
    """
    axes = tuple(range(1, fields.ndim))
    spectrum = torch.fft.fftn(fields.double(), dim=axes, norm="forward").abs().square().mean(dim=0)
    grids = torch.meshgrid(*[torch.fft.fftfreq(s, 1 / s).double() for s in fields.shape[1:]], indexing="ij")
    radius = torch.stack([grid.square() for grid in grids]).sum(dim=0).sqrt().round().long().to(fields.device)
    count = min(fields.shape[1:]) // 2 + 1
    sums = torch.zeros(int(radius.max()) + 1, dtype=torch.float64, device=fields.device)
    return sums.index_add_(0, radius.flatten(), spectrum.flatten())[:count]
