"""Small parts that several modules of the network share."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

_LARGEST_GROUPS = 32


def constant(values: np.ndarray, like: Tensor) -> Tensor:
    """Return constants as a tensor on the device of another one.

    Modules keep them as arrays: as buffers they would be empty after `from_pretrained`, which builds without memory.
    """
    return torch.from_numpy(values).to(like.device)


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
        self.use_checkpoint = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, halved if the stride is 2; recomputed in backward if `use_checkpoint` is set."""
        if self.use_checkpoint and torch.is_grad_enabled():
            result: Tensor = checkpoint(self._pass, x, use_reentrant=False)
            return result
        return self._pass(x)

    def _pass(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.second(torch.relu(self.first(x))))


def sinusoids(values: Tensor, channels: int, shortest: float, longest: float) -> Tensor:
    """Return sines and cosines of values at wavelengths between two, (..., channels) for (...) values, in float32."""
    count = channels // 2
    ratio = torch.arange(count, device=values.device, dtype=torch.float32) / max(count - 1, 1)
    waves = shortest * (longest / shortest) ** ratio
    phase = values.float()[..., None] * (2 * math.pi / waves)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


# What begins at chosen values overrides `reset_parameters`, which both torch and `from_pretrained` call; the functions
# of `transformers.initialization` leave loaded weights alone.


class ZeroLinear(nn.Linear):
    """A linear layer that begins as zero."""

    def reset_parameters(self) -> None:
        """Set weights and bias to zero."""
        init.zeros_(self.weight)
        init.zeros_(self.bias)


class ZeroConv2d(nn.Conv2d):
    """A convolution that begins as zero."""

    def reset_parameters(self) -> None:
        """Set weights and bias to zero."""
        init.zeros_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class OddsConv2d(nn.Conv2d):
    """A 1 x 1 convolution to logits whose biases begin at the log-odds of given shares.

    Args:
        channels: in.
        shares: of each output, between 0 and 1.
        is_constant: whether the weights begin at zero, so that the shares are exact.
    """

    def __init__(self, channels: int, shares: Sequence[float], *, is_constant: bool = False) -> None:
        safe = [min(max(share, 1e-5), 1 - 1e-5) for share in shares]
        self.odds, self.is_constant = [math.log(share / (1 - share)) for share in safe], is_constant
        super().__init__(channels, len(safe), 1)

    def reset_parameters(self) -> None:
        """Set the biases to the log-odds."""
        super().reset_parameters()
        assert self.bias is not None
        init.copy_(self.bias, torch.tensor(self.odds, device=self.bias.device))
        if self.is_constant:
            init.zeros_(self.weight)
