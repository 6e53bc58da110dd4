from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch

from featherweight.bev import export as export_module
from featherweight.bev.export import export, input_names
from featherweight.bev.image_processing_focusbev import read_image
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.streaming import StreamingSegmenter
from featherweight.errors import ConfigError, NumericsError


def model(**changes) -> FocusBEVForSegmentation:
    torch.manual_seed(0)
    new = FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", **changes))
    if new.fusion is not None:
        torch.nn.init.normal_(new.fusion.output.weight, std=0.3)
    return new


def test_onnxruntime_gives_the_networks_logits_over_a_drive_and_the_next(tmp_path, index):
    """The file's own features are its memory; where the second drive begins, it is empty again.

    1e-3 is what float32 may differ between two runtimes over this depth; a memory that is not forgotten differs by 0.1.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    network = model(memory_length=2)
    session = onnxruntime.InferenceSession(str(export(network, tmp_path / "bev.onnx")))
    names = [one.name for one in session.get_inputs()]
    assert set(names) <= set(input_names(network))
    frames = [*index.frames[:3], *index.frames[4:6]]
    stream = StreamingSegmenter(network, frames[0].intrinsics, frames[0].camera_to_ego)
    kept: deque[np.ndarray] = deque(maxlen=2)
    for frame in frames:
        now = stream.inputs(read_image(frame.image), frame.ego_to_world, frame.timestamp, frame.sequence)
        if not now.memory.valid.any():
            kept.clear()
        own = [*reversed(kept), *[np.zeros((32, 49, 50), np.float32)] * (2 - len(kept))]
        memory = replace(now.memory, features=torch.from_numpy(np.stack(own))[None])
        values = [now.pixel_values, now.intrinsics, now.camera_to_ego, *vars(memory).values()]
        given = dict(zip(input_names(network), values, strict=True))
        logits, features = session.run(["logits", "bev_features"], {name: given[name].numpy() for name in names})
        kept.append(features[0])
        output = stream.step(read_image(frame.image), frame.ego_to_world, frame.timestamp, frame.sequence)
        assert np.abs(logits - output.logits.numpy()).max() <= 1e-3
        assert len(stream) == len(kept)


@pytest.mark.slow
def test_a_program_of_torch_export_gives_the_networks_logits(tmp_path):
    assert export(model(), tmp_path / "bev.pt2", "pt2").stat().st_size > 1e6


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export_module, "LARGEST_DIFFERENCE", -1.0)
    network = model().train()
    with pytest.raises(NumericsError, match="differ"):
        export(network, tmp_path / "bev.onnx")
    assert not list(tmp_path.iterdir()) and network.training


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="file_format='tflite'"):
        export(model(), tmp_path / "bev.tflite", "tflite")
