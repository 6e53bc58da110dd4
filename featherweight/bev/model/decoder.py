"""From ground features to the logits of each class and cell."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from featherweight.bev.model.layers import OddsConv2d, ResidualBlock, conv3x3


class GroundDecoder(nn.Module):
    """A small U: residual blocks at the resolution of the features and at half of it, then up to that of the labels.

    Args:
        channels: of the ground features.
        widths: channels at full and at half resolution.
        blocks: residual blocks at each.
        shape: (rows, columns) of the prediction.
        priors: share of each class; the last bias starts there.
    """

    def __init__(
        self, channels: int, widths: tuple[int, int], blocks: int, shape: tuple[int, int], priors: Sequence[float]
    ) -> None:
        super().__init__()
        full, half = widths
        self.shape = shape
        self.fine = nn.Sequential(*(ResidualBlock(channels if n == 0 else full, full) for n in range(blocks)))
        self.coarse = nn.Sequential(
            *(ResidualBlock(full if n == 0 else half, half, stride=2 if n == 0 else 1) for n in range(blocks))
        )
        self.merge = ResidualBlock(full + half, full)
        self.head = nn.Sequential(conv3x3(full, max(32, full // 2)), nn.ReLU(), OddsConv2d(max(32, full // 2), priors))

    def forward(self, ground: Tensor) -> Tensor:
        """Return logits (B, K, rows, columns)."""
        fine = self.fine(ground)
        coarse = interpolate(self.coarse(fine), size=fine.shape[-2:], mode="bilinear", align_corners=False)
        merged = self.merge(torch.cat([fine, coarse], dim=1))
        return self.head(interpolate(merged, size=self.shape, mode="bilinear", align_corners=False))
