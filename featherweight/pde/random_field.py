"""Gaussian random fields on the unit cube: the inputs of the generated data sets.

A field is drawn from a generator alone, so sample i of a data set is a function of (seed, i), whoever draws it.
Shapes: d axes of s points each.
Source: Li et al., Fourier Neural Operator, arXiv 2010.08895, appendix A.3 (covariances of the data sets).
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from featherweight.errors import ConfigError
from featherweight.pde.spectral import cosine_synthesis


def periodic_field(
    size: int,
    dimensions: int,
    *,
    alpha: float,
    tau: float,
    sigma: float | None = None,
    generators: Sequence[Generator],
) -> Tensor:
    """Draw periodic fields with covariance ``sigma^2 (-Laplace + tau^2)^(-alpha)`` and mean zero.

    Args:
        size: s points in each axis, at i / s.
        dimensions: d.
        alpha: decay of the spectrum; larger is smoother.
        tau: inverse length scale.
        sigma: amplitude; None takes ``tau^((2 alpha - d) / 2)``, which keeps the variance near that of tau = 1.
        generators: one for each field.
    Returns:
        (len(generators), s, .., s) float64.
    Raises:
        ConfigError: if ``2 alpha <= d``, where the variance is infinite.
    """
    if 2 * alpha <= dimensions:
        raise ConfigError(
            f"periodic_field: alpha={alpha} gives infinite variance in {dimensions} dimensions; expected alpha > "
            f"{dimensions / 2}. Raise alpha."
        )
    amplitude = tau ** (alpha - dimensions / 2) if sigma is None else sigma
    wavenumber = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    squares = sum(k.square() for k in torch.meshgrid(*[wavenumber] * dimensions, indexing="ij"))
    assert isinstance(squares, Tensor)
    root = size**dimensions * math.sqrt(2) * amplitude * (4 * math.pi**2 * squares + tau**2) ** (-alpha / 2)
    root.view(-1)[0] = 0
    shape = (size,) * dimensions
    noise = torch.stack([torch.randn(shape, dtype=torch.complex128, generator=one) for one in generators])
    return torch.fft.ifftn(noise * root, dim=tuple(range(1, dimensions + 1))).real


def neumann_field(size: int, *, alpha: float, tau: float, generators: Sequence[Generator]) -> Tensor:
    """Draw fields on the unit square with covariance ``(-Laplace + tau^2)^(-alpha)``, zero normal derivative, mean
    zero.

    Args:
        size: s points in each axis; the field is even around the boundary.
        alpha: decay of the spectrum.
        tau: inverse length scale.
        generators: one for each field.
    Returns:
        (len(generators), s, s) float64.
    """
    index = torch.arange(size, dtype=torch.float64)
    squares = index[:, None].square() + index.square()
    coefficient = tau ** (alpha - 1) * (math.pi**2 * squares + tau**2) ** (-alpha / 2)
    coefficient[0, 0] = 0
    noise = torch.stack([torch.randn(size, size, dtype=torch.float64, generator=one) for one in generators])
    return cosine_synthesis(cosine_synthesis(size * coefficient * noise, 1), 2)
