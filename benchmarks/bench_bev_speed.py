"""Speed of the ground segmentation: a drive picture by picture, and the column transform beside its alternatives.

    scripts/bench bev_speed [--threads 2] [--rounds 7]

`upright` is `tiny`. `column` and its alternatives have the same backbone, channels, decoder and cells (`tiny-columns`,
whose features are half as fine): `dense` lets every cell of the ground attend to every pixel, with as many layers and
heads, and stands here alone; `ipm` looks up flat ground; `mlp` is one matrix from all pixels to all cells. They take
turns, so that a busy moment hits all of them. Besides wall time stand processor seconds, which other work on the
machine changes less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measurement import write_rows
from PIL import Image
from torch import Tensor, nn

from featherweight.bev.model.camera import Camera
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.model.view_transform import ColumnLayer
from featherweight.bev.streaming import StreamingSegmenter

K = np.array([[177.0, 0, 112], [0, 177, 64], [0, 0, 1]])


class DenseTransform(nn.Module):
    """Every cell of the ground attends to every pixel."""

    def __init__(self, config: FocusBEVConfig) -> None:
        super().__init__()
        self.shape, channels = config.feature_grid.shape, config.hidden_channels
        stride = config.level_strides[0]
        rows, columns = (-(-size // stride) for size in config.image_size)
        self.cells = nn.Parameter(torch.randn(self.shape[0] * self.shape[1], channels) * 0.02)
        self.places = nn.Parameter(torch.randn(rows * columns, channels) * 0.02)
        self.layers = nn.ModuleList(ColumnLayer(channels, config.num_heads) for _ in range(config.num_layers))

    def forward(self, features: Tensor, camera: Camera) -> Tensor:
        """Return (B, C, rows, columns) from (B, C, h, w)."""
        tokens = features.flatten(2).transpose(1, 2)
        x = self.cells.expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(x, tokens, self.places.expand(len(features), -1, -1), None)
        return x.transpose(1, 2).unflatten(2, self.shape)


def network(kind: str) -> FocusBEVForSegmentation:
    """Return a network of the smallest size with a view transform."""
    torch.manual_seed(0)
    if kind == "upright":
        return FocusBEVForSegmentation(FocusBEVConfig.preset("tiny"))
    config = FocusBEVConfig.preset("tiny-columns", view_transform="ipm" if kind == "dense" else kind)
    model = FocusBEVForSegmentation(config)
    if kind == "dense":
        model.transforms[0].direct = DenseTransform(config)
    return model


def forward_of(model: FocusBEVForSegmentation) -> Callable[[], Any]:
    """Return what predicts one picture."""
    pixels, intrinsics = torch.randn(1, 3, 128, 224), torch.from_numpy(K).float()[None]

    def run() -> None:
        model.eval()
        with torch.inference_mode():
            model(pixels, intrinsics)

    return run


def step_of(model: FocusBEVForSegmentation) -> Callable[[], Any]:
    """Return what makes a training step of four pictures, without the optimizer."""
    pixels, intrinsics = torch.randn(4, 3, 128, 224), torch.from_numpy(K).float().expand(4, 3, 3)
    labels = torch.rand(4, 14, 98, 100) < 0.1

    def run() -> None:
        model.train().zero_grad()
        model(pixels, intrinsics, labels=labels).loss.backward()

    return run


def stream_of(length: int) -> Callable[[], Any]:
    """Return what takes the next picture of a drive, resizing it as a camera's picture must be."""
    torch.manual_seed(0)
    model = FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", memory_length=length)).eval()
    stream = StreamingSegmenter(model, np.diag([2.0, 2.0, 1.0]) @ K)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 448, 3), dtype=np.uint8))
    steps = iter(range(1_000_000))

    def run() -> None:
        pose, number = np.eye(4), next(steps)
        pose[0, 3] = number
        stream.step(picture, pose if length else None, 0.1 * number)

    return run


def main() -> None:
    """Let all take turns and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kinds = ("upright", "column", "ipm", "mlp", "dense")
    models = {kind: network(kind) for kind in kinds}
    runs = {f"predict, {kind}": forward_of(models[kind]) for kind in kinds}
    runs |= {f"train 4, {kind}": step_of(models[kind]) for kind in kinds}
    runs |= {f"stream, memory {length}": stream_of(length) for length in (0, 3)}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            repeats = 2 if name.startswith("train") else 5
            started = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                run()
            if turn:  # the first is a warm-up
                wall[name].append((time.perf_counter() - started[0]) / repeats)
                processor[name].append((time.process_time() - started[1]) / repeats)
    for name in runs:
        kind = name.rsplit(" ", 1)[1]
        model = models.get(kind)
        row = {
            "what": name,
            "wall_ms_median": round(1000 * statistics.median(wall[name]), 1),
            "wall_ms_fastest": round(1000 * min(wall[name]), 1),
            "processor_ms": round(1000 * statistics.median(processor[name]), 1),
            "parameters": "" if model is None else sum(one.numel() for one in model.parameters()),
        }
        print(row)
        write_rows("bev_speed", [row])


if __name__ == "__main__":
    main()
