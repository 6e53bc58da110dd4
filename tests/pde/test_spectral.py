"""Transforms and spectra against sums written out."""

import math

import pytest
import torch
from pde_fields import error, generators

from featherweight.pde.random_field import periodic_field
from featherweight.pde.spectral import cosine_synthesis, halved, shell_spectrum, sine_transform

PI = math.pi


def test_transforms_are_orthonormal():
    x = torch.randn(5, 7, dtype=torch.float64, generator=generators(1)[0])
    torch.testing.assert_close(sine_transform(sine_transform(x, 1), 1), x, rtol=1e-13, atol=1e-13)
    index = torch.arange(7, dtype=torch.float64)
    basis = torch.cos(PI * index[:, None] * (index + 0.5) / 7) * (2 / 7) ** 0.5
    basis[0] /= 2**0.5
    torch.testing.assert_close(cosine_synthesis(x, 1), x @ basis, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("inner", [93, 253])
def test_sine_transforms_of_slow_lengths_are_products_with_their_matrix(inner):
    x = torch.randn(2, inner, dtype=torch.float64, generator=generators(1)[0])
    odd = torch.nn.functional.pad(torch.cat([x, -x.flip(1)], dim=1), (1, 0))
    odd = torch.cat([odd[:, : inner + 1], torch.zeros(2, 1), odd[:, inner + 1 :]], dim=1)
    sums = -torch.fft.rfft(odd).imag[:, 1 : inner + 1] / (2 * (inner + 1)) ** 0.5
    torch.testing.assert_close(sine_transform(x, 1), sums, rtol=1e-12, atol=1e-12)
    assert error(sine_transform(sine_transform(x.T, 0), 0), x.T) < 1e-13


def test_a_halved_field_keeps_the_frequencies_that_its_points_can_tell_apart():
    grid = torch.arange(16, dtype=torch.float64) / 16
    low, high = torch.cos(2 * PI * 3 * grid), torch.cos(2 * PI * 4 * grid)
    assert error(halved((low + high)[None])[0], low[::2]) < 1e-14
    plane = low[:, None] * torch.sin(2 * PI * grid)
    assert error(halved(plane[None])[0], plane[::2, ::2]) < 1e-14


def test_shells_add_up_to_the_mean_square():
    w = periodic_field(16, 2, alpha=4, tau=3, generators=generators(2))
    spectrum = shell_spectrum(w)
    corner = float(w.square().mean() - spectrum.sum())
    assert len(spectrum) == 9 and 0 <= corner < 1e-3 * float(w.square().mean())
