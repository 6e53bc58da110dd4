"""The way back to the picture, supervised in training alone: what the cycle restores must tell the classes of pixels.

Labels of the ground, seen from the camera, are the truth. Prediction needs none of this.
Source: the idea of CycleBEV, arXiv 2602.23575; here the cycle's own way back carries it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.model.camera import Camera
from featherweight.bev.model.layers import OddsConv2d


class InverseView(nn.Module):
    """Logits of classes for each pixel of a feature level.

    Args:
        channels: C of the restored features.
        priors: share of each class.
    """

    def __init__(self, channels: int, priors: Sequence[float]) -> None:
        super().__init__()
        self.head = OddsConv2d(channels, priors)

    def forward(self, restored: Tensor) -> Tensor:
        """Return (B, K, h, w) of restored features (B, C, h, w)."""
        logits: Tensor = self.head(restored)
        return logits


@torch.no_grad()
def seen_from_camera(
    labels: Tensor, seen: Tensor, camera: Camera, grid: BEVGridConfig, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return labels (B, K, h, w) and mask (B, h, w) of the pixels of a feature level, over flat ground.

    Args:
        labels: (B, K, rows, columns) of the grid.
        seen: (B, rows, columns).
        camera: in units of the level.
        grid: of the labels.
        size: (h, w).
    """
    points = camera.ground_points(*size)
    low = points.new_tensor([grid.x_min, grid.z_min])
    index = (points - low) / grid.resolution - grid.offset
    count = points.new_tensor([grid.columns, grid.rows])
    place = (2 * index + 1) / count - 1
    inside = (place.abs() < 1).all(-1)
    place = torch.where(inside[..., None], place, 0.0)
    both = torch.cat([labels.float(), seen.float()[:, None]], dim=1)
    found = grid_sample(both, place, mode="nearest", align_corners=False) > 0.5
    return found[:, :-1], found[:, -1] & inside
