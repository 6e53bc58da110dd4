import numpy as np
import torch

from featherweight.bev.model.camera import Camera
from featherweight.bev.model.cycle import SelfCalibratedCycle
from featherweight.bev.model.view_transform import ColumnTransform

CAMERA = Camera.of(torch.tensor([[[18.0, 0, 10], [0, 19.0, 6], [0, 0, 1]]]), None, 1.4)


def column(**options) -> ColumnTransform:
    torch.manual_seed(0)
    return ColumnTransform(16, 4, 2, np.arange(10) + 1.5, **options).double()


def cycle() -> SelfCalibratedCycle:
    torch.manual_seed(1)
    return SelfCalibratedCycle(16, 4).double()


def test_at_the_start_the_second_pass_changes_nothing():
    first, features = column(), torch.randn(1, 16, 12, 20, dtype=torch.float64)
    polar, restored, logits = cycle()(first, features, CAMERA)
    assert torch.equal(polar, first(features, CAMERA))
    assert restored.shape == features.shape
    torch.testing.assert_close(logits, torch.full_like(logits, 4.0), rtol=0, atol=1e-3)


def test_an_irrelevant_pixel_has_no_influence_on_the_second_pass():
    module = cycle()
    torch.nn.init.normal_(module.second.output.weight)
    features = torch.randn(1, 16, 12, 20, dtype=torch.float64, requires_grad=True)
    polar = torch.randn(1, 16, 10, 20, dtype=torch.float64)
    logits = torch.full((1, 1, 12, 20), 4.0, dtype=torch.float64)
    logits[0, 0, 5, 7] = -60.0
    module.read_again(column(), features, CAMERA, polar, logits).square().sum().backward()
    size = features.grad.abs().sum((0, 1))
    assert size[5, 7] < 1e-4 * size[4, 7]


def test_columns_a_few_at_a_time_give_the_same_numbers():
    features = torch.randn(1, 16, 12, 20, dtype=torch.float64)
    module = cycle()
    torch.nn.init.normal_(module.second.output.weight)
    results = [module(column(**options), features, CAMERA) for options in ({}, {"column_chunk": 3})]
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(whole, part, rtol=1e-12, atol=1e-12)
