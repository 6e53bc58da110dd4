"""From image columns to lines of the ground: attention inside of columns, since a column is one vertical plane.

Shapes: B batch, C channels, h rows and w columns of a feature level, D depth bins, H heads. Costs O(B w D h) instead
of the O(B w h cells) of attention between all pixels and all cells; columns are independent, so that a few at a time
give the same numbers in less memory.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, grid_sample, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.model.camera import Camera
from featherweight.bev.model.layers import ZeroConv2d, constant, sinusoids

INITIAL_SIGMA_ROWS = 1.5
"""Width of the ground prior at the start, in feature rows: a wider one is nearly flat and learns slowly."""


class ColumnAttention(nn.Module):
    """Queries of a column attend to tokens of the same column, pre-norm.

    Args:
        channels: C.
        heads: H.
        output: class of the last layer; one that begins at zero adds nothing at first.
    """

    def __init__(self, channels: int, heads: int, output: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_token = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.output = output(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor, codes: Tensor, bias: Tensor | None) -> Tensor:
        """Return what queries (n, Q, C) read from tokens (n, T, C), projected; `codes` (n, T, C) belong to keys alone.

        Args:
            x: queries.
            tokens: values, and keys after `codes` are added.
            codes: places of the tokens.
            bias: (n, H or 1, Q or 1, T) added to the scores.
        """
        key, value = self.key_value(self.norm_token(tokens) + codes).chunk(2, dim=-1)
        query = self.query(self.norm_query(x))
        split = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        mask = None if bias is None else bias.to(query.dtype)
        read = scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=mask)
        return self.output(read.transpose(1, 2).flatten(2))


class ColumnLayer(nn.Module):
    """Attention inside of columns, then a feed-forward part, each beside an identity."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm = ColumnAttention(channels, heads), nn.LayerNorm(channels)
        self.ffn = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor, tokens: Tensor, codes: Tensor, bias: Tensor | None) -> Tensor:
        """Return the queries (n, Q, C) after reading; see `ColumnAttention.forward`."""
        x = x + self.attention(x, tokens, codes, bias)
        return x + self.ffn(self.norm(x))


class ColumnTransform(nn.Module):
    """Image features to polar ground features: for each column, one token a depth bin.

    Args:
        channels: C.
        heads: H.
        layers: of attention.
        depths: centres of the depth bins, m.
        column_chunk: columns at once; 0 takes all.
    """

    def __init__(self, channels: int, heads: int, layers: int, depths: np.ndarray, column_chunk: int = 0) -> None:
        super().__init__()
        self.column_chunk, self.use_checkpoint = column_chunk, False
        self.depths = depths.astype(np.float32)
        self.depth_embedding = nn.Parameter(torch.empty(len(depths), channels))
        self.depth_project = nn.Linear(channels, channels)
        self.row_project = nn.Linear(channels, channels)
        self.log_sigma = nn.Parameter(torch.empty(heads))
        self.layers = nn.ModuleList(ColumnLayer(channels, heads) for _ in range(layers))
        self.across = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with depths alike and a narrow prior of flat ground."""
        init.normal_(self.depth_embedding, std=0.02)
        init.constant_(self.log_sigma, math.log(INITIAL_SIGMA_ROWS))

    def queries(self) -> Tensor:
        """Return the code of each depth, (D, C)."""
        logs = torch.log(constant(self.depths, self.depth_embedding))
        code = sinusoids(logs, self.depth_embedding.shape[1], 0.2, 2 * math.log(50))
        return self.depth_embedding + self.depth_project(code.to(self.depth_embedding.dtype))

    def row_codes(self, camera: Camera, rows: int) -> Tensor:
        """Return the code (B, h, C) of the elevation of each row: it survives resizing, cropping and other cameras."""
        code = sinusoids(camera.elevation(rows), self.depth_embedding.shape[1], 0.02, 2.0)
        return self.row_project(code.to(self.row_project.weight.dtype))

    def ground_bias(self, camera: Camera, rows: int) -> Tensor:
        """Return the prior (B, H, D, h): where flat ground at each depth is seen, in float32."""
        v = torch.arange(rows, device=self.log_sigma.device) + 0.5
        away = v - camera.ground_row(constant(self.depths, self.log_sigma))[..., None]
        sigma = self.log_sigma.to(torch.promote_types(self.log_sigma.dtype, torch.float32))
        return -(away**2)[:, None] / (2 * torch.exp(2 * sigma)[None, :, None, None])

    def forward(self, features: Tensor, camera: Camera) -> Tensor:
        """Return polar features (B, C, D, w) of image features (B, C, h, w)."""
        polar = self.by_chunk(self._pass, features, camera, self.ground_tokens(features, camera))
        return polar + self.across(polar)

    def ground_tokens(self, features: Tensor, camera: Camera) -> Tensor:
        """Return the features (B, C, D, w) where flat ground at each depth is seen, clamped into the picture."""
        rows = features.shape[2]
        place = (camera.ground_row(constant(self.depths, features)) - 0.5).clamp(0, rows - 1)
        low = place.floor().clamp(max=max(rows - 2, 0)).long()
        share = (place - low).to(features.dtype)[:, None, :, None]
        pick = low[:, None, :, None].expand(-1, features.shape[1], -1, features.shape[3])
        above = (pick + 1).clamp(max=rows - 1)
        return features.gather(2, pick) * (1 - share) + features.gather(2, above) * share

    def _pass(self, features: Tensor, camera: Camera, ground: Tensor) -> Tensor:
        batch, _, rows, columns = features.shape
        tokens, codes = _columns(features), self.row_codes(camera, rows)
        x = _columns(ground) + self.queries()
        bias = self.ground_bias(camera, rows)
        codes = codes[:, None].expand(-1, columns, -1, -1).flatten(0, 1)
        bias = bias[:, None].expand(-1, columns, -1, -1, -1).flatten(0, 1)
        for layer in self.layers:
            x = layer(x, tokens, codes, bias)
        return _image(x, batch)

    def by_chunk(self, function: Callable[..., Tensor], features: Tensor, camera: Camera, *more: Tensor) -> Tensor:
        """Return `function(features, camera, *more)`, a few columns at a time, recomputed in backward if asked.

        Args:
            function: of (B, C, h, k) features, a camera and more tensors whose last axis counts columns.
            features: (B, C, h, w).
            camera: of the whole picture; columns do not matter to it.
            more: further tensors (..., w).
        """
        width = self.column_chunk or features.shape[3]
        parts = []
        for start in range(0, features.shape[3], width):
            part = [tensor[..., start : start + width] for tensor in (features, *more)]
            if self.use_checkpoint and torch.is_grad_enabled():
                parts.append(checkpoint(function, part[0], camera, *part[1:], use_reentrant=False))
            else:
                parts.append(function(part[0], camera, *part[1:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


def _columns(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B w, h, C)."""
    return features.permute(0, 3, 2, 1).flatten(0, 1)


def _image(columns: Tensor, batch: int) -> Tensor:
    """(B w, D, C) -> (B, C, D, w)."""
    return columns.unflatten(0, (batch, -1)).permute(0, 3, 2, 1)


class ToGround(nn.Module):
    """Polar features to the cells of a grid, by bilinear samples; zeros beside the picture.

    Args:
        grid: of the ground features.
        depth_first: centre of the first depth bin, m.
        depth_step: size of a bin, m.
        bins: D.
    """

    def __init__(self, grid: BEVGridConfig, depth_first: float, depth_step: float, bins: int) -> None:
        super().__init__()
        self.points = grid.points()[..., :2].astype(np.float32)
        # Clamped to the first and last centre, or else the outer half bins would fade to zero.
        row = ((self.points[..., 1] - depth_first) / depth_step).clip(0, bins - 1)
        self.place = ((2 * row + 1) / bins - 1).astype(np.float32)

    def forward(self, polar: Tensor, camera: Camera) -> Tensor:
        """Return (B, C, rows, columns) of the grid from (B, C, D, w)."""
        points = constant(self.points, polar)
        u = camera.column(points[..., 0], points[..., 1])
        place = torch.stack([2 * u / polar.shape[3] - 1, constant(self.place, polar).expand_as(u)], dim=-1)
        return grid_sample(polar.float(), place, align_corners=False).to(polar.dtype)


class FlatGround(nn.Module):
    """The baseline without parameters: each cell takes the feature where flat ground is seen (inverse perspective)."""

    def __init__(self, grid: BEVGridConfig) -> None:
        super().__init__()
        self.points = grid.points()[..., :2].astype(np.float32)

    def forward(self, features: Tensor, camera: Camera, above: float = 0.0) -> Tensor:
        """Return (B, C, rows, columns) from (B, C, h, w), of points `above` m over the ground."""
        rows, columns = features.shape[2:]
        points = constant(self.points, features)
        u = camera.column(points[..., 0], points[..., 1])
        v = camera.ground_row(points[:, 0, 1], above).clamp(0.5, rows - 0.5)[..., None].expand_as(u)
        place = torch.stack([2 * u / columns - 1, 2 * v / rows - 1], dim=-1)
        return grid_sample(features.float(), place, align_corners=False).to(features.dtype)


class UprightGround(nn.Module):
    """What is seen above each cell, and where in the picture: features on flat ground, plus what a small network makes
    of them, of those at several heights above, and of the row at which the cell is seen.

    A cell behind the front of a car shows the car at the height of the ground and what lies beyond at that of the
    roof: where the two change tells how far it reaches. Far cells share a feature pixel; the place inside of it tells
    them apart. At first only the ground counts.

    Args:
        grid: of the ground features.
        channels: C.
        heights: above the ground, m.
    """

    def __init__(self, grid: BEVGridConfig, channels: int, heights: Sequence[float]) -> None:
        super().__init__()
        self.flat, self.heights = FlatGround(grid), (0.0, *heights)
        self.depths = grid.depths().astype(np.float32)
        self.read = nn.Conv2d(channels * len(self.heights), channels, 1)
        self.place = nn.Linear(channels, channels, bias=False)
        self.project = ZeroConv2d(channels, channels, 1)

    def code(self, features: Tensor, camera: Camera) -> Tensor:
        """Return the code (B, rows, C) of each distance: where between feature rows it is seen, and how far it is."""
        depths, half = constant(self.depths, features), features.shape[1] // 2
        row = sinusoids(camera.ground_row(depths), half, 1.0, 8.0)
        far = sinusoids(torch.log(depths), half, 0.2, 2 * math.log(50)).expand_as(row)
        return torch.cat([row, far], dim=-1).to(features.dtype)

    def forward(self, features: Tensor, camera: Camera) -> Tensor:
        """Return (B, C, rows, columns) from (B, C, h, w)."""
        levels = [self.flat(features, camera, height) for height in self.heights]
        hidden = (
            self.read(torch.cat(levels, dim=1)) + self.place(self.code(features, camera)).transpose(1, 2)[..., None]
        )
        return levels[0] + self.project(gelu(hidden))


class FlattenedMlp(nn.Module):
    """The baseline of older work: one matrix from all pixels to all cells. It ignores the calibration."""

    def __init__(self, image: tuple[int, int], grid: BEVGridConfig) -> None:
        super().__init__()
        self.image, self.shape = image, grid.shape
        cells = grid.rows * grid.columns
        self.map = nn.Sequential(nn.Linear(image[0] * image[1], cells // 16), nn.ReLU(), nn.Linear(cells // 16, cells))

    def forward(self, features: Tensor, camera: Camera) -> Tensor:
        """Return (B, C, rows, columns) from (B, C, h, w) of the size that it was made for."""
        return self.map(features.flatten(2)).unflatten(2, self.shape)
