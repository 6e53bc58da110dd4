"""From a trained network to a file that runs without it: ONNX, or a program of torch.export; checked before it is kept.

The state is functional: memory goes in, the present frame's features come out, and whoever runs the file keeps them.
Shapes are static.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation, Memory
from featherweight.config.files import new_file
from featherweight.errors import ConfigError, MissingExtraError, NumericsError

Format = Literal["onnx", "pt2"]
LARGEST_DIFFERENCE = 1e-3
"""Of the logits between the network and its file, in float32."""
_OPSET = 18


class _Functional(nn.Module):
    """The network with plain tensors in and out."""

    def __init__(self, model: FocusBEVForSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, intrinsics: Tensor, camera_to_ego: Tensor, *memory: Tensor) -> Any:
        """Return logits, and with a memory the features to remember."""
        past = Memory(*memory) if memory else None
        output = self.model(pixel_values, intrinsics, camera_to_ego=camera_to_ego, memory=past)
        return (output.logits, output.bev_features) if memory else output.logits


def export(model: FocusBEVForSegmentation, path: str | Path, file_format: Format = "onnx") -> Path:
    """Write a network as a file of its own, after comparing both on two frames, the second with the first in memory.

    Args:
        model: trained network.
        path: of the file; it appears when the check has passed.
        file_format: "onnx" (opset 18) or "pt2" (torch.export).
    Returns:
        The path.
    Raises:
        NumericsError: if any logit differs by more than 1e-3; no file is left.
        MissingExtraError: if onnx or onnxruntime is missing.
    """
    if file_format not in ("onnx", "pt2"):
        raise ConfigError(f"export: file_format='{file_format}' is unknown; expected onnx or pt2. Choose one.")
    target, was_training = Path(path), model.training
    wrapped = _Functional(model.eval())
    try:
        frames = _two_frames(model)
        with new_file(target) as place:
            run = (
                _write_onnx(wrapped, frames[0], place)
                if file_format == "onnx"
                else _write_program(wrapped, frames[0], place)
            )
            for frame in frames:
                _compare(wrapped, frame, run)
    finally:
        model.train(was_training)
    return target


def input_names(model: FocusBEVForSegmentation) -> list[str]:
    """Return the names of a file's inputs, in order."""
    memory = ["memory_features", "memory_mask", "memory_motion", "memory_age", "memory_valid"]
    return ["pixel_values", "intrinsics", "camera_to_ego", *(memory if model.config.memory_length else [])]


def _two_frames(model: FocusBEVForSegmentation) -> list[tuple[Tensor, ...]]:
    """Return the inputs of two frames: the first of a drive, then one with a memory of moving ground."""
    config, random = model.config, torch.Generator().manual_seed(0)
    height, width = config.image_size
    pixels = [torch.randn(1, 3, height, width, generator=random) for _ in range(2)]
    intrinsics = torch.tensor([[[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]]])
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[2, 3] = config.camera_height
    length, grid = config.memory_length, config.feature_grid
    if not length:
        return [(one, intrinsics, pose[None]) for one in pixels]
    features = torch.randn(1, length, config.hidden_channels, *grid.shape, generator=random)
    motion = torch.eye(3).repeat(1, length, 1, 1)
    motion[:, :, 1, 2] = torch.arange(1, length + 1) * 3.3
    motion[:, :, 0, 1] = 0.05
    age = torch.arange(1, length + 1)[None] * 0.5
    mask = torch.rand(1, length, *grid.shape, generator=random) > 0.4
    empty = torch.zeros(1, length, dtype=torch.bool)
    return [
        (pixels[0], intrinsics, pose[None], torch.zeros_like(features), mask & False, motion, age, empty),
        (pixels[1], intrinsics, pose[None], features, mask, motion, age, ~empty),
    ]


def _write_onnx(wrapped: _Functional, frame: tuple[Tensor, ...], path: Path) -> Any:
    try:
        import onnx  # noqa: F401 - the exporter of torch needs it
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"export: file_format='onnx' needs {error.name}; expected it to be installed. Run: pip install "
            "'featherweight[bev]'"
        ) from error
    names = input_names(wrapped.model)
    outputs = ["logits", "bev_features"] if wrapped.model.config.memory_length else ["logits"]
    with warnings.catch_warnings():
        # The exporter by tracing needs no further package; it warns of its age and of branches on static shapes.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapped,
            frame,
            str(path),
            input_names=names,
            output_names=outputs,
            opset_version=_OPSET,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}

    def run(inputs: tuple[Tensor, ...]) -> np.ndarray:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True) if name in known}
        return session.run(["logits"], given)[0]

    return run


def _write_program(wrapped: _Functional, frame: tuple[Tensor, ...], path: Path) -> Any:
    torch.export.save(torch.export.export(wrapped, frame), path)
    program = torch.export.load(path).module()

    def run(inputs: tuple[Tensor, ...]) -> np.ndarray:
        with torch.no_grad():
            result = program(*inputs)
        return (result[0] if isinstance(result, tuple) else result).numpy()

    return run


def _compare(wrapped: _Functional, frame: tuple[Tensor, ...], run: Any) -> None:
    with torch.no_grad():
        expected = wrapped(*frame)
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()
    difference = float(np.abs(run(frame) - expected).max())
    if not difference <= LARGEST_DIFFERENCE:
        raise NumericsError(
            f"export: the file's logits differ by {difference:.2g} from the network's; expected at most "
            f"{LARGEST_DIFFERENCE:g}. Export in the other format, and report this with the versions of torch and "
            "onnxruntime."
        )
