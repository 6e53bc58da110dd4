"""The self-calibrated cycle: what can be restored from the ground matters, and a second pass reads only that.

Image to ground (first pass), ground back to image, a relevance R for each pixel from what was restored, and a second
pass whose scores get log R: attention is then proportional to R exp(score), so that a pixel with R = 0 is gone and the
result stays a mean of values. At the start the module changes nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from featherweight.bev.model.camera import Camera
from featherweight.bev.model.layers import group_norm
from featherweight.bev.model.view_transform import ColumnAttention, ColumnTransform, _columns, _image

SMALLEST_LOG_RELEVANCE = -13.8
"""log 1e-6: below it, nothing is left to suppress, and a column of zeros would have no finite score."""


class SelfCalibratedCycle(nn.Module):
    """A column transform with a way back and a second pass.

    Args:
        first: the transform of the first pass; its codes serve the others.
        channels: C.
        heads: H.
    """

    def __init__(self, first: ColumnTransform, channels: int, heads: int) -> None:
        super().__init__()
        self.first = first
        self.back = ColumnAttention(channels, heads)
        self.relevance = nn.Sequential(
            nn.Conv2d(3 * channels, channels, 3, padding=1, bias=False),
            group_norm(channels),
            nn.GELU(),
            nn.Conv2d(channels, 1, 1),
        )
        self.second = ColumnAttention(channels, heads)
        last = self.relevance[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.constant_(last.bias, 4.0)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(self.second.output.weight)
        nn.init.zeros_(self.second.output.bias)

    def forward(self, features: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
        """Return polar features (B, C, D, w), the restored image (B, C, h, w) and logits of relevance (B, 1, h, w)."""
        polar = self.first(features, camera)
        restored = self.first.by_chunk(self._restore, features, camera, polar)
        logits = self.relevance(torch.cat([features, restored, features * restored], dim=1))
        return self.first.by_chunk(self._read_again, features, camera, polar, logits), restored, logits

    def _restore(self, features: Tensor, camera: Camera, polar: Tensor) -> Tensor:
        batch, _, rows, columns = features.shape
        codes = self.first.row_codes(camera, rows)[:, None].expand(-1, columns, -1, -1).flatten(0, 1)
        return _image(self.back(codes, _columns(polar), self.first.queries(), None), batch)

    def _read_again(self, features: Tensor, camera: Camera, polar: Tensor, logits: Tensor) -> Tensor:
        batch, _, rows, columns = features.shape
        codes = self.first.row_codes(camera, rows)[:, None].expand(-1, columns, -1, -1).flatten(0, 1)
        bias = logsigmoid(logits.float()).clamp(min=SMALLEST_LOG_RELEVANCE)
        bias = bias.permute(0, 3, 1, 2).flatten(0, 1)[:, :, None]  # (B w, 1, 1, h)
        read = self.second.attend(_columns(polar) + self.first.queries(), _columns(features), codes, bias)
        return polar + _image(read, batch)
