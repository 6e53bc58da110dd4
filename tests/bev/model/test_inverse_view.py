import torch

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.model.camera import Camera
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.inverse_view import seen_from_camera
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation

GRID = BEVGridConfig(resolution=0.5, anchor="center")
K = torch.tensor([[[177.0, 0, 112], [0, 177, 64], [0, 0, 1]]])


def test_ground_on_the_left_is_seen_on_the_left_and_far_ground_high_in_the_picture():
    labels = torch.zeros(1, 2, *GRID.shape, dtype=torch.bool)
    labels[:, 0, :, : GRID.columns // 2] = True
    labels[:, 1, GRID.rows // 2 :] = True
    camera = Camera.of(K, None, 1.5).at_stride(4)
    truth, shown = seen_from_camera(labels, torch.ones(1, *GRID.shape, dtype=torch.bool), camera, GRID, (32, 56))
    assert not shown[0, :17].any() and shown[0, 18:].all(), "sky tells nothing"
    assert truth[0, 0, 18:, :28].all() and not truth[0, 0, :, 28:].any()
    far = truth[0, 1].any(1)
    assert far.nonzero().max() < 20 and far.any(), "25 m ahead lies 10.6 pixels below the horizon"


def test_the_way_back_is_taught_the_classes_of_pixels_and_prediction_does_not_use_it():
    torch.manual_seed(0)
    model = FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", use_cycle=True))
    pixels, labels = torch.randn(1, 3, 128, 224), torch.rand(1, 14, *GRID.shape) < 0.1
    output = model(pixels, K, labels=labels)
    output.loss_dict["view"].backward()
    cycle = model.transforms[0].cycle
    assert cycle.back.attention.query.weight.grad.abs().sum() > 0
    assert cycle.second.output.weight.grad is None and model.decoder.head[0][0].weight.grad is None
    logits = output.logits.detach()
    torch.nn.init.normal_(model.transforms[0].inverse_view.head.weight)
    torch.testing.assert_close(model(pixels, K).logits, logits, rtol=0, atol=0)
