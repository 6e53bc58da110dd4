"""Memory of past frames on the ground: warped by the car's motion to where things are now, then fused cell by cell."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample
from transformers import initialization as init

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.model.layers import ZeroConv2d, constant


class GroundWarp(nn.Module):
    """Moves ground features of past frames into the present one.

    Args:
        grid: of the features.
    """

    def __init__(self, grid: BEVGridConfig) -> None:
        super().__init__()
        self.grid = grid
        self.points = grid.points()

    def forward(self, features: Tensor, motion: Tensor, mode: str = "bilinear") -> Tensor:
        """Return (n, C, rows, columns) features as the present frame sees them; zeros where the past frame has no cell.

        Args:
            features: of past frames.
            motion: (n, 3, 3) `featherweight.bev.geometry.ground_motion`: present ground point -> past one.
            mode: of `grid_sample`.
        """
        points = constant(self.points, features).to(torch.promote_types(features.dtype, torch.float32))
        past = torch.einsum("nij,hwj->nhwi", motion.to(points.dtype), points)
        grid = self.grid
        low = points.new_tensor([grid.x_min, grid.z_min])
        index = (past[..., :2] - low) / grid.resolution - grid.offset
        size = points.new_tensor([grid.columns, grid.rows])
        place = (2 * index + 1) / size - 1
        return grid_sample(features.to(points.dtype), place, mode=mode, align_corners=False).to(features.dtype)


class TemporalFusion(nn.Module):
    """Adds to each cell what the memory knows of its place; at the start it adds nothing.

    Args:
        channels: C.
        length: L, past frames of the memory.
        grid: of the features.
    """

    def __init__(self, channels: int, length: int, grid: BEVGridConfig) -> None:
        super().__init__()
        self.warp = GroundWarp(grid)
        self.query, self.key = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.output = ZeroConv2d(channels, channels, 1)
        self.frame_bias = nn.Parameter(torch.empty(length))
        self.age_weight = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with all frames alike."""
        init.zeros_(self.frame_bias)
        init.zeros_(self.age_weight)

    def forward(
        self, now: Tensor, memory: Tensor, mask: Tensor, motion: Tensor, age: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the fused features (B, C, rows, columns) and the weights (B, L + 1, rows, columns) of all frames.

        Args:
            now: features of the present frame.
            memory: (B, L, C, rows, columns) of past frames, as they were.
            mask: (B, L, rows, columns) which of their cells were in view.
            motion: (B, L, 3, 3), see `GroundWarp`.
            age: (B, L) seconds.
            valid: (B, L) which entries exist.
        """
        batch, length = memory.shape[:2]
        flat = motion.flatten(0, 1)
        past = self.warp(memory.flatten(0, 1).to(now.dtype), flat).unflatten(0, (batch, length))
        seen = self.warp(mask.flatten(0, 1)[:, None].to(now.dtype), flat).unflatten(0, (batch, length))[:, :, 0] > 0.5
        seen = seen & valid[:, :, None, None]
        past = torch.where(seen[:, :, None], past, 0.0)
        keys = self.key(past.flatten(0, 1)).unflatten(0, (batch, length))
        score = (self.query(now)[:, None] * keys).sum(2).float() / math.sqrt(now.shape[1])
        score = score + (self.frame_bias[:length] + self.age_weight * age.float())[:, :, None, None]
        score = score.masked_fill(~seen, -math.inf)
        # The present frame's score of 0 is always finite, so that no cell is without an answer.
        weights = torch.cat([torch.zeros_like(score[:, :1]), score], dim=1).softmax(dim=1)
        read = (weights[:, 1:, None].to(now.dtype) * past).sum(1)
        known = weights[:, 1:].sum(1, keepdim=True).to(now.dtype)
        return now + self.output(read) * (known > 0), weights
