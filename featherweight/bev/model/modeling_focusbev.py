"""FocusBEV for segmentation of the ground: one picture (and the memory of past ones) to a map of classes.

Source: Zhao, Jiang, Li, Luo, "Focus on BEV", arXiv 2410.15932, whose details are not public; the realisation is ours.
The column transform follows Saha et al., arXiv 2110.00966.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from featherweight.bev.data.classes import find_classes
from featherweight.bev.loss_weights import LossWeights
from featherweight.bev.losses import (
    cycle_loss,
    pitch_loss,
    relevance_loss,
    segmentation_losses,
    weighted_bce,
)
from featherweight.bev.model.backbone import AutoBackbone, FeaturePyramid, new_backbone
from featherweight.bev.model.camera import Camera
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.cycle import SelfCalibratedCycle
from featherweight.bev.model.decoder import GroundDecoder
from featherweight.bev.model.inverse_view import InverseView, seen_from_camera
from featherweight.bev.model.layers import ResidualBlock, constant
from featherweight.bev.model.pitch import PitchHead
from featherweight.bev.model.temporal import TemporalFusion
from featherweight.bev.model.view_transform import ColumnTransform, FlatGround, FlattenedMlp, ToGround, UprightGround
from featherweight.errors import ShapeError

_WITH_FIRST_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, ColumnTransform, TemporalFusion)
OVERLAP_M = 2.0
"""Over which two feature levels blend into one another."""


@dataclass
class BEVSegmenterOutput(ModelOutput):
    """What the network returns.

    Attributes:
        loss: sum of the weighted terms, if labels were given.
        loss_dict: each term by name, unweighted.
        logits: (B, K, rows, columns); a class is where sigmoid(logits) > 0.5.
        bev_features: (B, C, rows, columns) before fusion: what the memory keeps.
        relevance: logits (B, 1, h, w) of how much a pixel tells about the ground; None without cycle.
        memory_weights: (B, L + 1, rows, columns) of the present and past frames; None without memory.
        pitch: (B, 2) estimated pitch and roll in radians; None without its head.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    bev_features: Tensor | None = None
    relevance: Tensor | None = None
    memory_weights: Tensor | None = None
    pitch: Tensor | None = None


@dataclass(frozen=True)
class Memory:
    """Past frames of a batch; see `TemporalFusion.forward` for the shapes."""

    features: Tensor
    mask: Tensor
    motion: Tensor
    age: Tensor
    valid: Tensor


class LevelTransform(nn.Module):
    """The view transform of one feature level, for the depths that it serves."""

    def __init__(self, config: FocusBEVConfig, stride: int, near: float, far: float) -> None:
        super().__init__()
        grid, channels = config.feature_grid, config.hidden_channels
        self.stride, self.cycle, self.inverse_view = stride, None, None
        if config.view_transform == "ipm":
            self.direct: nn.Module | None = FlatGround(grid)
        elif config.view_transform == "upright":
            self.direct = UprightGround(grid, channels, config.upright_heights)
        elif config.view_transform == "mlp":
            height, width = config.image_size
            self.direct = FlattenedMlp((-(-height // stride), -(-width // stride)), grid)
        else:
            self.direct = None
            count = round((far - near) / config.depth_step)
            depths = near + (np.arange(count) + 0.5) * config.depth_step
            column = ColumnTransform(
                channels, config.num_heads, config.num_layers, depths, column_chunk=config.column_chunk
            )
            self.column = column
            if config.use_cycle:
                self.cycle = SelfCalibratedCycle(channels, config.num_heads)
                self.inverse_view = InverseView(channels, config.priors)
            self.to_ground = ToGround(grid, float(depths[0]), config.depth_step, count)

    def forward(self, features: Tensor, camera: Camera) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return ground features, and with a cycle the restored image and the logits of relevance."""
        camera = camera.at_stride(self.stride)
        if self.direct is not None:
            return self.direct(features, camera), None, None
        if self.cycle is None:
            return self.to_ground(self.column(features, camera), camera), None, None
        polar, restored, relevance = self.cycle(self.column, features, camera)
        return self.to_ground(polar, camera), restored, relevance


class FocusBEVForSegmentation(PreTrainedModel):
    """Backbone, feature pyramid, view transform, memory, decoder.

    Args:
        config: every option.

    Example:
        >>> model = FocusBEVForSegmentation(FocusBEVConfig.preset("tiny"))
        >>> pixels, intrinsics = torch.zeros(1, 3, 128, 224), torch.tensor([[[177., 0, 112], [0, 180, 64], [0, 0, 1]]])
        >>> model(pixels, intrinsics).logits.shape
        torch.Size([1, 14, 98, 100])
    """

    config_class = FocusBEVConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: FocusBEVConfig) -> None:
        super().__init__(config)
        self.use_checkpoint = False
        grid, channels = config.feature_grid, config.hidden_channels
        self.backbone = new_backbone(config.backbone)
        self.pyramid = FeaturePyramid(self.backbone.channels, self.backbone.strides, config.level_strides, channels)
        ranges = _depth_ranges(config)
        self.transforms = nn.ModuleList(
            LevelTransform(config, stride, near, far)
            for stride, (near, far) in zip(config.level_strides, ranges, strict=True)
        )
        self.blend = _blend(grid.depths(), ranges)
        length = config.memory_length
        self.fusion = TemporalFusion(channels, length, grid) if length else None
        rows = -(-config.image_size[0] // config.level_strides[0])
        self.pitch_head = PitchHead(channels, rows) if config.use_pitch_head else None
        self.decoder = GroundDecoder(
            channels, config.decoder_channels, config.decoder_blocks, config.bev_grid.shape, config.priors
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Give a module its first weights: each class knows its own."""
        if isinstance(module, _WITH_FIRST_WEIGHTS):
            module.reset_parameters()

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute chunks of columns, residual blocks of backbone and decoder, and the IoU's tolerances in backward.

        Args:
            activation_checkpointing_kwargs: of transformers; nothing here needs any.
            every_n_layers: alike.
            offload: alike.
        """
        self._set_checkpointing(True)

    def activation_checkpointing_disable(self) -> None:
        """Keep everything for backward."""
        self._set_checkpointing(False)

    def _set_checkpointing(self, enabled: bool) -> None:
        self.use_checkpoint = enabled
        for module in self.modules():
            if isinstance(module, ColumnTransform | ResidualBlock):
                module.use_checkpoint = enabled
            elif isinstance(module, AutoBackbone):
                module.set_checkpointing(enabled)

    def forward(
        self,
        pixel_values: Tensor,
        intrinsics: Tensor,
        camera_to_ego: Tensor | None = None,
        memory: Memory | None = None,
        labels: Tensor | None = None,
        valid_mask: Tensor | None = None,
        relevance_target: Tensor | None = None,
        pitch_target: Tensor | None = None,
        loss_weights: LossWeights | None = None,
        features_only: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """Return a `BEVSegmenterOutput`.

        Args:
            pixel_values: (B, 3, height, width) normalised pixels of the configured size.
            intrinsics: (B, 3, 3) K of those pixels.
            camera_to_ego: (B, 4, 4); None: level, at the configured height.
            memory: past frames; None: this frame alone.
            labels: (B, K, rows, columns) 0 or 1.
            valid_mask: (B, rows, columns) which cells were seen; None: all.
            relevance_target: (B, 1, height, width) share of each pixel that tells about the ground, for the cycle.
            pitch_target: (B, 2) radians. The pitch head learns it; in training it stands for what the head says, so
                that the rest learns from views that are where they belong.
            loss_weights: of the terms; None takes the defaults.
            features_only: stop at the ground features: all that a memory keeps.
            return_dict: whether to return the output by names; else a tuple.
        Raises:
            ShapeError: if pictures or intrinsics have another shape.
        """
        _check_inputs(pixel_values, intrinsics, self.config.image_size)
        camera = Camera.of(intrinsics, camera_to_ego, self.config.camera_height)
        levels = self.pyramid(self.backbone(pixel_values))
        pitch = None
        if self.pitch_head is not None:
            pitch = self.pitch_head(levels[0])
            known = pitch_target if self.training and pitch_target is not None else pitch
            camera = camera.pitched(known[:, 0])
        results = [transform(level, camera) for transform, level in zip(self.transforms, levels, strict=True)]
        ground = sum(
            result[0] * weight[:, None].to(result[0].dtype)
            for result, weight in zip(results, constant(self.blend, results[0][0]), strict=True)
        )
        if features_only:
            return BEVSegmenterOutput(bev_features=ground)
        fused, weights = ground, None
        if self.fusion is not None:
            past = memory if memory is not None else self.empty_memory(len(ground), ground.device, ground.dtype)
            fused, weights = self.fusion(ground, past.features, past.mask, past.motion, past.age, past.valid)
        logits = self.decoder(fused)
        output = BEVSegmenterOutput(
            logits=logits, bev_features=ground, relevance=results[0][2], memory_weights=weights, pitch=pitch
        )
        if labels is not None:
            weights_of_terms = loss_weights or LossWeights()
            terms = self._losses(
                output,
                levels,
                results,
                labels,
                valid_mask,
                relevance_target,
                pitch_target,
                camera,
                weights_of_terms,
            )
            output.loss_dict = terms
            output.loss = weights_of_terms.total(terms)
        return output if return_dict else output.to_tuple()

    def _losses(
        self,
        output: BEVSegmenterOutput,
        levels: list[Tensor],
        results: list[tuple[Tensor, Tensor | None, Tensor | None]],
        labels: Tensor,
        valid_mask: Tensor | None,
        relevance_target: Tensor | None,
        pitch_target: Tensor | None,
        camera: Camera,
        weights: LossWeights,
    ) -> dict[str, Tensor]:
        assert output.logits is not None
        mask = torch.ones_like(labels[:, 0], dtype=torch.bool) if valid_mask is None else valid_mask
        config = self.config
        terms = segmentation_losses(
            output.logits,
            labels,
            mask,
            config.priors,
            pooled=weights.iou_over == "micro_batch",
            objects=find_classes(config.classes).objects if weights.occupancy else (),
            recompute=self.use_checkpoint,
        )
        for transform, level, (_, restored, relevance) in zip(self.transforms, levels, results, strict=True):
            if restored is None or relevance is None:
                continue
            assert isinstance(transform, LevelTransform) and transform.inverse_view is not None
            size = (level.shape[2], level.shape[3])
            truth, shown = seen_from_camera(labels, mask, camera.at_stride(transform.stride), config.bev_grid, size)
            found = {
                "cycle": cycle_loss(level, restored, relevance),
                "view": weighted_bce(transform.inverse_view(restored), truth, shown, config.priors),
            }
            if relevance_target is not None:
                found["relevance"] = relevance_loss(relevance, relevance_target)
            for name, term in found.items():
                terms[name] = terms.get(name, 0) + term / len(levels)
        if output.pitch is not None and pitch_target is not None:
            terms["pitch"] = pitch_loss(output.pitch, pitch_target)
        return terms

    def empty_memory(self, batch: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Memory:
        """Return a memory without entries: fusion still runs, so that every parameter gets a gradient."""
        length, channels = self.config.memory_length, self.config.hidden_channels
        eye = torch.eye(3, device=device).expand(batch, length, 3, 3)
        nothing = torch.zeros(batch, length, channels, *self.config.feature_grid.shape, device=device, dtype=dtype)
        valid = torch.zeros(batch, length, dtype=torch.bool, device=device)
        return Memory(nothing, nothing[:, :, 0] > 0, eye, torch.zeros(batch, length, device=device), valid)


def _check_inputs(pixel_values: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> None:
    if pixel_values.dim() != 4 or pixel_values.shape[1] != 3 or tuple(pixel_values.shape[2:]) != tuple(size):
        raise ShapeError(
            f"FocusBEVForSegmentation: pixel_values of shape {tuple(pixel_values.shape)}; expected (B, 3, {size[0]}, "
            f"{size[1]}). Prepare pictures with FocusBEVImageProcessor, which changes the intrinsics with them."
        )
    if intrinsics.shape != (len(pixel_values), 3, 3):
        raise ShapeError(
            f"FocusBEVForSegmentation: intrinsics of shape {tuple(intrinsics.shape)}; expected ({len(pixel_values)}, "
            "3, 3), one K for each picture."
        )


def _depth_ranges(config: FocusBEVConfig) -> list[tuple[float, float]]:
    """Return near and far end of the depths of each level, finest (and farthest) first, in whole bins.

    Three levels have about the published shares (20 to 50 m at stride 8, 8 to 24 at 16, 1 to 10 at 32).
    """
    grid = config.bev_grid
    if config.view_transform != "column" or len(config.level_strides) == 1:
        return [(grid.z_min, grid.z_max)] * len(config.level_strides)
    count, step = len(config.level_strides), config.depth_step
    cuts = [grid.z_max * (0.4**index) for index in range(1, count)]
    cuts = [grid.z_min + round((cut - grid.z_min) / step) * step for cut in cuts]
    fars, nears = [grid.z_max, *cuts], [*cuts, grid.z_min]
    overlap = max(step, round(OVERLAP_M / step) * step)
    return [
        (max(near - overlap, grid.z_min), min(far + overlap, grid.z_max)) for near, far in zip(nears, fars, strict=True)
    ]


def _blend(depths: np.ndarray, ranges: list[tuple[float, float]]) -> np.ndarray:
    """Return the weight (levels, rows) of each level at each depth: 1 in all, linear where two overlap."""
    z = depths
    first, last = min(near for near, _ in ranges), max(far for _, far in ranges)
    weights = []
    for near, far in ranges:
        rise = np.ones_like(z) if near == first else (z - near).clip(min=0)
        fall = np.ones_like(z) if far == last else (far - z).clip(min=0)
        weights.append(np.minimum(rise, fall))
    stacked = np.stack(weights)
    return (stacked / stacked.sum(axis=0)).astype(np.float32)
