import math

import pytest
import torch

from featherweight.bev.model.layers import OddsConv2d, ResidualBlock, ZeroConv2d, ZeroLinear, group_norm, sinusoids


@pytest.mark.parametrize("channels", [8, 16, 32, 48, 96, 128])
def test_groups_divide_the_channels(channels):
    assert group_norm(channels)(torch.randn(1, channels, 3, 3)).shape == (1, channels, 3, 3)


def test_a_block_halves_the_picture_at_stride_two():
    assert ResidualBlock(16, 32, stride=2)(torch.randn(1, 16, 9, 8)).shape == (1, 32, 5, 4)


def test_layers_that_begin_as_zero_say_nothing():
    assert not ZeroLinear(4, 3)(torch.randn(2, 4)).any()
    assert not ZeroConv2d(4, 3, 1)(torch.randn(2, 4, 5, 5)).any()


def test_shares_are_where_logits_begin():
    layer = OddsConv2d(4, [0.3, 0.0, 1.0], is_constant=True)
    shares = layer(torch.randn(1, 4, 2, 2)).sigmoid()[0, :, 0, 0]
    torch.testing.assert_close(shares, torch.tensor([0.3, 1e-5, 1 - 1e-5]), rtol=1e-2, atol=1e-6)


def test_codes_have_the_wavelengths_that_they_say():
    code = sinusoids(torch.tensor([0.0, 1.0]), 8, 1.0, 4.0)
    assert code[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert code[1, 3] == pytest.approx(math.sin(2 * math.pi / 4), abs=1e-6)
    torch.testing.assert_close(code[1, 0], torch.tensor(0.0), atol=1e-5, rtol=0)
