"""The task by shape alone: what a simulation of its memory trains. No data are read."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.bev.average import average_of, keep_average
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.options import BEVConfig, continued_model_config, new_model_config
from featherweight.bev.step import forward
from featherweight.training.task import Batch, Skeleton, Words


class BEVSkeleton(Skeleton):
    """Stands for a `BEVTask` in a simulation.

    Args:
        config: options of the task.
    """

    layers = None
    words = Words("frames", "loss/frame", ("miou",))

    def __init__(self, config: BEVConfig) -> None:
        self.config = config
        self.model_config: FocusBEVConfig = (
            continued_model_config(config) if config.checkpoint else new_model_config(config)
        )

    def build_model(self) -> nn.Module:
        """Return the network, with the weights of whatever device or mode is on."""
        return FocusBEVForSegmentation(self.model_config).train()

    def prepare(self, model: nn.Module) -> None:
        """Begin the average of the weights, if one is asked for."""
        if self.config.ema is not None:
            keep_average(model, self.config.ema)

    def after_step(self, model: nn.Module) -> None:
        """Take the step into the average of the weights."""
        if (average := average_of(model)) is not None:
            average.update_(model)

    def batches(self, split: Any, *, micro_batch_size: int, **others: Any) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches of the right shapes for ever; their content means nothing."""
        while True:
            yield self._batch(micro_batch_size)

    def _batch(self, count: int) -> dict[str, Tensor]:
        model = self.model_config
        grid, classes = model.bev_grid, len(model.priors)
        batch = {
            **_cameras(count, model.image_size),
            "labels": torch.zeros(count, classes, *grid.shape, dtype=torch.bool),
            "seen": torch.ones(count, *grid.shape, dtype=torch.bool),
            "relevance": torch.zeros(count, *model.image_size, dtype=torch.bool),
            "tilt": torch.zeros(count, 2),
        }
        if model.memory_length:
            past = _cameras(count * model.memory_length, model.image_size)
            shape = (count, model.memory_length)
            batch |= {f"past_{name}": value.unflatten(0, shape) for name, value in past.items()}
            batch |= {
                "past_in_view": torch.ones(*shape, *model.feature_grid.shape, dtype=torch.bool),
                "motion": torch.eye(3).expand(*shape, 3, 3).contiguous(),
                "age": torch.ones(*shape),
                "valid": torch.ones(*shape, dtype=torch.bool),
            }
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum of the losses and the number of frames, as the task does."""
        output = forward(model, batch, self.config.loss)
        assert output.loss is not None
        return output.loss.float() * len(batch["pixels"]), len(batch["pixels"])


def _cameras(count: int, size: tuple[int, int]) -> dict[str, Tensor]:
    return {
        "pixels": torch.zeros(count, 3, *size, dtype=torch.uint8),
        "intrinsics": torch.eye(3).expand(count, 3, 3).contiguous(),
        "camera_to_ego": torch.eye(4).expand(count, 4, 4).contiguous(),
    }
