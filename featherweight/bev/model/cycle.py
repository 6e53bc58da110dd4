"""The self-calibrated cycle: what can be restored from the ground matters, and a second pass reads only that.

Image to ground (first pass), ground back to image, a relevance R for each pixel from what was restored, and a second
pass whose scores get log R: attention is then proportional to R exp(score), so that a pixel with R = 0 is gone and the
result stays a mean of values. At the start the module changes nothing.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from featherweight.bev.model.camera import Camera
from featherweight.bev.model.layers import OddsConv2d, ZeroLinear, group_norm
from featherweight.bev.model.view_transform import ColumnAttention, ColumnLayer, ColumnTransform, _columns, _image

INITIAL_RELEVANCE = 0.982
"""Of every pixel: log-odds of 4."""
SMALLEST_LOG_RELEVANCE = -13.8
"""log 1e-6: below it, nothing is left to suppress, and a column of zeros would have no finite score."""


class SelfCalibratedCycle(nn.Module):
    """A way back and a second pass beside a column transform, whose codes serve them too.

    Args:
        channels: C.
        heads: H.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.back = ColumnLayer(channels, heads)
        self.relevance = nn.Sequential(
            nn.Conv2d(3 * channels, channels, 3, padding=1, bias=False),
            group_norm(channels),
            nn.GELU(),
            OddsConv2d(channels, [INITIAL_RELEVANCE], is_constant=True),
        )
        self.second = ColumnAttention(channels, heads, output=ZeroLinear)

    def forward(self, first: ColumnTransform, features: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
        """Return what was seen of the ground, what of the picture could be restored, and what of it matters.

        Args:
            first: the transform of the first pass.
            features: (B, C, h, w) of the picture.
            camera: its cameras.
        Returns:
            Polar features (B, C, D, w), the restored picture (B, C, h, w), logits of relevance (B, 1, h, w).
        """
        polar = first(features, camera)
        restored = first.by_chunk(partial(self._restore, first), features, camera, polar)
        logits = self.relevance(torch.cat([features, restored, features * restored], dim=1))
        return first.by_chunk(partial(self.read_again, first), features, camera, polar, logits), restored, logits

    def _restore(self, first: ColumnTransform, features: Tensor, camera: Camera, polar: Tensor) -> Tensor:
        codes = _of_columns(first.row_codes(camera, features.shape[2]), features.shape[3])
        return _image(self.back(codes, _columns(polar), first.queries(), None), len(features))

    def read_again(
        self, first: ColumnTransform, features: Tensor, camera: Camera, polar: Tensor, logits: Tensor
    ) -> Tensor:
        """Return the polar features (B, C, D, w) after a second look at the pixels that matter."""
        codes = _of_columns(first.row_codes(camera, features.shape[2]), features.shape[3])
        bias = logsigmoid(logits.float()).clamp(min=SMALLEST_LOG_RELEVANCE)
        bias = bias.permute(0, 3, 1, 2).flatten(0, 1)[:, :, None]  # (B w, 1, 1, h)
        read = self.second(_columns(polar) + first.queries(), _columns(features), codes, bias)
        return polar + _image(read, len(features))


def _of_columns(codes: Tensor, columns: int) -> Tensor:
    """(B, h, C) -> (B w, h, C)."""
    return codes[:, None].expand(-1, columns, -1, -1).flatten(0, 1)
