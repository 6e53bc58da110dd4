"""What the network knows of the camera of each picture: intrinsics of a feature level, height, pitch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """Cameras of a batch of B pictures, all in float32; image units are those of a feature level."""

    focal_x: Tensor
    """(B,)."""
    focal_y: Tensor
    """(B,)."""
    center_x: Tensor
    """(B,)."""
    center_y: Tensor
    """(B,)."""
    height: Tensor
    """(B,) m above the ground."""
    pitch: Tensor
    """(B,) radians downward."""

    @classmethod
    def of(cls, intrinsics: Tensor, camera_to_ego: Tensor | None, default_height: float) -> "Camera":
        """Return the cameras of (B, 3, 3) intrinsics and (B, 4, 4) poses; without poses they stand level."""
        intrinsics = intrinsics.float()
        if camera_to_ego is None:
            height = torch.full_like(intrinsics[:, 0, 0], default_height)
            pitch = torch.zeros_like(height)
        else:
            height = camera_to_ego[:, 2, 3].float()
            pitch = torch.asin((-camera_to_ego[:, 2, 2].float()).clamp(-1, 1))
        return cls(intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2], height, pitch)

    def at_stride(self, stride: int) -> "Camera":
        """Return the same cameras in the units of a feature level."""
        return Camera(
            self.focal_x / stride,
            self.focal_y / stride,
            self.center_x / stride,
            self.center_y / stride,
            self.height,
            self.pitch,
        )

    def pitched(self, more: Tensor) -> "Camera":
        """Return the same cameras, (B,) radians further down."""
        return Camera(self.focal_x, self.focal_y, self.center_x, self.center_y, self.height, self.pitch + more)

    def elevation(self, rows: int) -> Tensor:
        """Return the angle (B, rows) below the horizon at the centre of each feature row, radians."""
        v = torch.arange(rows, device=self.focal_y.device) + 0.5
        return torch.atan((v - self.center_y[:, None]) / self.focal_y[:, None]) + self.pitch[:, None]

    def ground_row(self, depths: Tensor, above: float = 0.0) -> Tensor:
        """Return the feature row (B, D) where points `above` m over flat ground at (D,) distances are seen."""
        angle = torch.atan((self.height[:, None] - above) / depths) - self.pitch[:, None]
        return self.center_y[:, None] + self.focal_y[:, None] * torch.tan(angle)

    def ground_points(self, rows: int, columns: int) -> Tensor:
        """Return (B, h, w, 2) x and z in m where the ray of each feature pixel meets flat ground; infinite above it."""
        angle = self.elevation(rows)
        depth = torch.where(angle > 1e-4, self.height[:, None] / torch.tan(angle.clamp(min=1e-4)), torch.inf)
        u = torch.arange(columns, device=self.focal_x.device) + 0.5
        slope = (u - self.center_x[:, None]) / self.focal_x[:, None]
        x = torch.where(depth.isfinite()[:, :, None], slope[:, None] * depth[:, :, None], torch.inf)
        return torch.stack([x, depth[:, :, None].expand_as(x)], dim=-1)

    def column(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the feature column (B, ...) of ground points (...)."""
        shape = (-1, *(1 for _ in x.shape))
        return self.focal_x.view(shape) * (x / z) + self.center_x.view(shape)
