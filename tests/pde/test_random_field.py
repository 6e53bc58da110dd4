"""Random fields have the covariance that they are drawn from."""

import math

import pytest
import torch
from pde_fields import generators

from featherweight.errors import ConfigError
from featherweight.pde.random_field import periodic_field

PI = math.pi


def test_periodic_fields_have_the_variance_of_their_covariance():
    fields = periodic_field(32, 2, alpha=2.5, tau=7, generators=generators(600))
    k = torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    spectrum = 7.0**3 * (4 * PI**2 * (k[:, None] ** 2 + k**2) + 49) ** -2.5
    spectrum[0, 0] = 0
    # The variance of 600 fields with some 10 strong modes each: 3 % is three standard errors.
    assert float(fields.var()) == pytest.approx(float(spectrum.sum()), rel=0.06)
    assert float(fields.mean(dim=(1, 2)).abs().max()) < 1e-14
    with pytest.raises(ConfigError, match="infinite variance"):
        periodic_field(8, 2, alpha=1.0, tau=1, generators=generators(1))
