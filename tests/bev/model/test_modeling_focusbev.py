import math

import pytest
import torch

from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.model.pitch import LARGEST_RAD
from featherweight.errors import ShapeError

K = torch.tensor([[[177.0, 0, 112], [0, 177.0, 64], [0, 0, 1]]])


def new(**changes) -> FocusBEVForSegmentation:
    torch.manual_seed(0)
    return FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", **changes)).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_cycle": True},
        {"view_transform": "ipm"},
        {"view_transform": "mlp"},
        {"view_transform": "column", "level_strides": [4]},
        {"view_transform": "column", "level_strides": [4, 8, 16]},
    ],
    ids=["upright", "cycle", "ipm", "mlp", "column", "levels"],
)
def test_every_form_predicts_trains_and_is_loaded_as_it_was_saved(tmp_path, changes):
    model = new(**changes)
    pixels = torch.randn(1, 3, 128, 224)
    labels, seen = torch.rand(1, 14, 98, 100) < 0.1, torch.rand(1, 98, 100) < 0.5
    output = model(pixels, K, labels=labels, valid_mask=seen, relevance_target=torch.rand(1, 1, 128, 224))
    assert output.logits.shape == (1, 14, 98, 100)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert ("cycle" in output.loss_dict) == model.config.use_cycle
    model.save_pretrained(tmp_path)
    again = FocusBEVForSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(pixels, K).logits, model(pixels, K).logits)
    assert again.config.id2label[4] == "car"


def test_tiny_has_as_many_parameters_as_it_says():
    assert sum(parameter.numel() for parameter in new().parameters()) < 1e6


def test_a_new_model_predicts_the_priors():
    with torch.no_grad():
        share = new()(torch.randn(1, 3, 128, 224), K).logits.sigmoid().mean((0, 2, 3))
    assert share[0] > 0.2 and (share[4:] < 0.1).all()


def test_memory_and_pitch_begin_as_nothing():
    torch.manual_seed(1)
    plain, full = new(), new(memory_length=2, use_pitch_head=True)
    full.load_state_dict(plain.state_dict(), strict=False)
    pixels = torch.randn(1, 3, 128, 224)
    with torch.no_grad():
        output = full(pixels, K)
        assert torch.equal(output.logits, plain(pixels, K).logits)
    assert torch.equal(output.pitch, torch.zeros(1, 2))


def test_the_true_pitch_stands_for_the_estimate_in_training_alone():
    torch.manual_seed(2)
    model, pixels, tilt = new(use_pitch_head=True), torch.randn(1, 3, 128, 224), torch.tensor([[0.01, 0.0]])

    def logits(is_training: bool, target: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            return model.train(is_training)(pixels, K, pitch_target=target).logits

    level = logits(is_training=False)
    assert torch.equal(logits(is_training=False, target=tilt), level)
    assert torch.equal(logits(is_training=True), level)
    taught = logits(is_training=True, target=tilt)
    assert (taught - level).abs().max() > 1e-3
    with torch.no_grad():
        model.pitch_head.output.bias[0] = math.atanh(0.01 / LARGEST_RAD)
    torch.testing.assert_close(logits(is_training=False), taught)


def test_the_pitch_of_the_calibration_moves_the_ground():
    model, pose = new(), torch.eye(4)
    pose[:3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[2, 3] = model.config.camera_height
    pixels = torch.randn(1, 3, 128, 224)
    with torch.no_grad():
        level = model(pixels, K, camera_to_ego=pose[None]).logits
        torch.testing.assert_close(level, model(pixels, K).logits)
        pose[2, 3] = 0.5
        assert (model(pixels, K, camera_to_ego=pose[None]).logits - level).abs().max() > 1e-3


def test_recomputing_in_backward_gives_the_same_gradients():
    model, pixels = new(use_cycle=True, column_chunk=16), torch.randn(1, 3, 128, 224)
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(pixels, K, labels=torch.eye(98, 100).bool().expand(1, 14, 98, 100)).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match="FocusBEVImageProcessor"):
        new()(torch.randn(1, 3, 100, 224), K)
    with pytest.raises(ShapeError, match="one K for each"):
        new()(torch.randn(2, 3, 128, 224), K)


def test_columns_a_few_at_a_time_change_no_logit_of_the_whole_network():
    """In float64, to 1e-12 of the largest logit."""
    pixels, camera = torch.randn(1, 3, 128, 224, dtype=torch.float64), K.double()
    whole, parts = (new(view_transform="column", **chunk).double().eval() for chunk in ({}, {"column_chunk": 7}))
    parts.load_state_dict(whole.state_dict())
    with torch.no_grad():
        expected, found = whole(pixels, camera).logits, parts(pixels, camera).logits
    assert expected.dtype == torch.float64
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "base", "dinov2-s"])
def test_larger_presets_predict(preset):
    config = FocusBEVConfig.preset(preset)
    model = FocusBEVForSegmentation(config).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, *config.image_size), K).logits.shape == (1, 14, 196, 200)
