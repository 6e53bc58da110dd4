"""Sine and cosine transforms and shell averages, by torch's FFT.

Shapes: s points in an axis, M inner points of an axis with zero ends.
"""

from functools import lru_cache

import torch
from torch import Tensor

LARGEST_FAST_PRIME = 13
"""FFTs of lengths with larger prime factors take up to five times as long."""
SMALLEST_DENSE = 64
"""Below so many points every transform is quick."""


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
    Cost: one real FFT of length 2 (M + 1); where M + 1 has a large prime factor, which slows an FFT down several times,
        a product with the (M, M) matrix of the transform.
    """
    moved = values.movedim(dim, -1)
    inner = moved.shape[-1]
    if inner >= SMALLEST_DENSE and _largest_prime(inner + 1) > LARGEST_FAST_PRIME:
        return (moved @ _sine_matrix(inner).to(moved)).movedim(-1, dim)
    zero = moved.new_zeros(*moved.shape[:-1], 1)
    odd = torch.cat([zero, moved, zero, -moved.flip(-1)], dim=-1)
    sums = -torch.fft.rfft(odd, dim=-1).imag[..., 1 : inner + 1]
    return (sums / (2 * (inner + 1)) ** 0.5).movedim(-1, dim)


def halved(fields: Tensor) -> Tensor:
    """Return periodic fields on every second point of each axis, without the frequencies that fewer points confuse.

    Args:
        fields: (n, s_1, .., s_d) real, every s even.
    Returns:
        (n, s_1 / 2, .., s_d / 2).
    """
    axes = tuple(range(1, fields.ndim))
    spectrum = torch.fft.fftn(fields, dim=axes)
    for axis in axes:
        size = fields.shape[axis]
        waves = torch.fft.fftfreq(size, 1 / size, device=fields.device)
        keep = torch.nonzero((waves >= -(size // 4)) & (waves < size // 4)).flatten()
        spectrum = spectrum.index_select(axis, keep)
        # The highest frequency has no partner of the other sign here.
        spectrum.index_fill_(axis, torch.nonzero(waves[keep] == -(size // 4)).flatten(), 0)
    return torch.fft.ifftn(spectrum, dim=axes).real / 2 ** len(axes)


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


@lru_cache(maxsize=4)
def _sine_matrix(inner: int) -> Tensor:
    index = torch.arange(1, inner + 1, dtype=torch.float64)
    # Whole numbers of half turns are taken out first, so that large products lose no digits.
    turns = (index[:, None] * index).remainder(2 * (inner + 1))
    return torch.sin(turns * (torch.pi / (inner + 1))) * (2 / (inner + 1)) ** 0.5


def _largest_prime(number: int) -> int:
    """Return the largest prime factor.

    Example:
        >>> _largest_prime(126), _largest_prime(254), _largest_prime(128)
        (7, 127, 2)
    """
    factor = 2
    while factor * factor <= number:
        while number % factor == 0 and number > factor:
            number //= factor
        factor += 1
    return number
