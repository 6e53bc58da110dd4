import numpy as np
import pytest
import torch

from featherweight.bev import export as export_module
from featherweight.bev.export import export, input_names
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.errors import ConfigError, NumericsError


def model(**changes) -> FocusBEVForSegmentation:
    torch.manual_seed(0)
    new = FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", **changes))
    if new.fusion is not None:
        torch.nn.init.normal_(new.fusion.output.weight, std=0.3)
    return new


@pytest.mark.parametrize("length", [0, 2])
def test_onnxruntime_gives_the_networks_logits_over_a_drive_with_a_new_beginning(tmp_path, length):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = model(memory_length=length)
    path = export(network, tmp_path / "bev.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    assert set(names) <= set(input_names(network))
    for frame in export_module._two_frames(network)[::-1]:
        given = dict(zip(input_names(network), frame, strict=True))
        found = session.run(["logits"], {name: given[name].numpy() for name in names})[0]
        with torch.no_grad():
            expected = export_module._Functional(network.eval())(*frame)
        expected = expected[0] if length else expected
        assert np.abs(found - expected.numpy()).max() <= 1e-3


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
