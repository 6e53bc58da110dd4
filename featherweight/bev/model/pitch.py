"""What the calibration does not tell: the pitch and roll of a picture, from how its rows look."""

import math

import torch
from torch import Tensor, nn

from featherweight.bev.model.layers import ZeroLinear

LARGEST_RAD = math.radians(1.5)
"""Estimates stay within this, so that a bad one cannot turn the world over."""


class PitchHead(nn.Module):
    """Pitch and roll from row profiles of a feature level: means over its columns, left and right half apart.

    A mean over all pixels would drop the row, in which pitch is seen.

    Args:
        channels: C of the level.
        rows: h of the level.
    """

    def __init__(self, channels: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.profile = nn.Sequential(
            nn.Conv1d(2 * channels, channels, 5, padding=2), nn.GELU(), nn.Conv1d(channels, 8, 5, padding=2), nn.GELU()
        )
        self.output = ZeroLinear(8 * rows, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, 2) pitch downward and roll in radians, 0 at the start, of (B, C, h, w)."""
        left, right = features.tensor_split(2, dim=3)
        profile = torch.cat([left.mean(3), right.mean(3)], dim=1)
        return LARGEST_RAD * torch.tanh(self.output(self.profile(profile).flatten(1)).float())
