"""One micro-batch through the network: pixels normalised, past frames remembered, every term of the loss asked for."""

from typing import Any

import torch
from torch import nn

from featherweight.bev.image_processing_focusbev import normalized
from featherweight.bev.loss_weights import LossWeights
from featherweight.bev.model.modeling_focusbev import BEVSegmenterOutput, Memory
from featherweight.training.task import Batch


def forward(model: nn.Module, batch: Batch, weights: LossWeights) -> BEVSegmenterOutput:
    """Return the network's output for a micro-batch of `featherweight.bev.samples`, with its loss."""
    inputs: dict[str, Any] = {
        "pixel_values": normalized(batch["pixels"]),
        "intrinsics": batch["intrinsics"],
        "camera_to_ego": batch["camera_to_ego"],
        "memory": remember(model, batch) if "past_pixels" in batch else None,
        "labels": batch["labels"],
        "valid_mask": batch["seen"],
        "relevance_target": batch["relevance"][:, None],
        "pitch_target": batch["tilt"],
        "loss_weights": weights,
    }
    output: BEVSegmenterOutput = model(**inputs)
    return output


def remember(model: nn.Module, batch: Batch) -> Memory:
    """Return the features of the past frames, computed without gradients and as in evaluation."""
    shape, was_training = batch["past_pixels"].shape[:2], model.training
    model.eval()
    try:
        with torch.no_grad():
            features = model(
                pixel_values=normalized(batch["past_pixels"].flatten(0, 1)),
                intrinsics=batch["past_intrinsics"].flatten(0, 1),
                camera_to_ego=batch["past_camera_to_ego"].flatten(0, 1),
                features_only=True,
            ).bev_features
    finally:
        model.train(was_training)
    features = features.unflatten(0, shape)
    return Memory(features, batch["past_in_view"], batch["motion"], batch["age"], batch["valid"])
