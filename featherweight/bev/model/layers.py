"""Small parts that several modules of the network share."""

import math

import torch
from torch import Tensor, nn

_LARGEST_GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a normalisation that knows no batch: right with one image and with many processes."""
    return nn.GroupNorm(math.gcd(_LARGEST_GROUPS, channels) if channels >= _LARGEST_GROUPS else channels // 4, channels)


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Return convolution and normalisation."""
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, group_norm(channels_out))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside an identity, or a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv3x3(channels_in, channels_out, stride)
        self.second = conv3x3(channels_out, channels_out)
        is_equal = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if is_equal else nn.Conv2d(channels_in, channels_out, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, halved if the stride is 2."""
        return torch.relu(self.shortcut(x) + self.second(torch.relu(self.first(x))))


def sinusoids(values: Tensor, channels: int, shortest: float, longest: float) -> Tensor:
    """Return sines and cosines of values at wavelengths between two, (..., channels) for (...) values, in float32."""
    count = channels // 2
    ratio = torch.arange(count, device=values.device, dtype=torch.float32) / max(count - 1, 1)
    waves = shortest * (longest / shortest) ** ratio
    phase = values.float()[..., None] * (2 * math.pi / waves)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
