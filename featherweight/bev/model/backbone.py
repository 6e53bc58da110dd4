"""From a picture to feature levels: a small own backbone or one of transformers, then a feature pyramid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.bev.model.layers import ResidualBlock, conv3x3, group_norm
from featherweight.errors import ConfigError

TINY_CHANNELS = (16, 32, 64, 96)
"""Of the own backbone at strides 2, 4, 8, 16."""


class TinyBackbone(nn.Module):
    """Four stages that halve the picture; 0.3 M parameters."""

    strides = (2, 4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((3, *TINY_CHANNELS[:-1]), TINY_CHANNELS, strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(conv3x3(a, b, stride=2), nn.ReLU(), ResidualBlock(b, b)) for a, b in sizes
        )
        self.channels = list(TINY_CHANNELS)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the features of every stage, finest first."""
        levels = []
        for stage in self.stages:
            pixels = stage(pixels)
            levels.append(pixels)
        return levels


class AutoBackbone(nn.Module):
    """A backbone of transformers by its configuration, or a trained one from a folder."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        from transformers import AutoBackbone as TransformersBackbone
        from transformers import AutoConfig

        options = dict(options)
        kind = options.pop("model_type", None)
        if kind is None:
            raise ConfigError(
                f"AutoBackbone: backbone={options} has no model_type; expected one such as resnet, convnextv2, swin or "
                "dinov2. Name it."
            )
        config = AutoConfig.for_model(kind, **options)
        names = config.stage_names[1:]
        config.out_features = names if kind != "dinov2" else names[-1:]
        self.network = TransformersBackbone.from_config(config)
        self.channels = list(self.network.channels)
        self.strides = (4, 8, 16, 32)[: len(self.channels)] if kind != "dinov2" else (config.patch_size,)

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute the layers in backward, or not, where transformers can do it for this kind of network."""
        if self.network.supports_gradient_checkpointing:
            if enabled:
                self.network.activation_checkpointing_enable({"use_reentrant": False})
            else:
                self.network.activation_checkpointing_disable()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the features of every stage, finest first."""
        return list(self.network(pixels).feature_maps)


def new_backbone(backbone: str | dict[str, Any]) -> TinyBackbone | AutoBackbone:
    """Return a backbone with random weights."""
    if isinstance(backbone, dict):
        return AutoBackbone(backbone)
    if backbone != "tiny":
        raise ConfigError(
            f"new_backbone: backbone='{backbone}' is unknown; expected 'tiny' or the options of a transformers "
            "backbone with its model_type. Choose one."
        )
    return TinyBackbone()


class FeaturePyramid(nn.Module):
    """Lateral 1 x 1 convolutions, top-down sums, 3 x 3 convolutions.

    Args:
        channels: of the backbone's levels, finest first.
        strides: of those levels.
        wanted: strides to return, finest first.
        width: channels of what is returned.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], wanted: Sequence[int], width: int) -> None:
        super().__init__()
        missing = [stride for stride in wanted if stride not in strides]
        if missing:
            raise ConfigError(
                f"FeaturePyramid: level_strides={tuple(wanted)}, but the backbone has {tuple(strides)}; expected some "
                "of these. Choose other levels."
            )
        self.first = list(strides).index(wanted[0])
        self.outputs = [list(strides).index(stride) - self.first for stride in wanted]
        self.laterals = nn.ModuleList(nn.Conv2d(size, width, 1) for size in channels[self.first :])
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), group_norm(width), nn.ReLU())
            for _ in wanted
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return (B, width, h, w) at each wanted stride."""
        sums = [lateral(level) for lateral, level in zip(self.laterals, levels[self.first :], strict=True)]
        for index in range(len(sums) - 2, -1, -1):
            coarse = torch.nn.functional.interpolate(sums[index + 1], size=sums[index].shape[-2:], mode="nearest")
            sums[index] = sums[index] + coarse
        return [smooth(sums[index]) for smooth, index in zip(self.smooth, self.outputs, strict=True)]
