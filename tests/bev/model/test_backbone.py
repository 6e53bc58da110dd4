import pytest
import torch

from featherweight.bev.model.backbone import FeaturePyramid, TinyBackbone, new_backbone
from featherweight.errors import ConfigError


def test_levels_have_their_strides_and_channels():
    backbone = TinyBackbone()
    levels = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize("wanted", [(4,), (4, 16), (8,)])
def test_the_pyramid_returns_the_wanted_levels_of_odd_sizes_too(wanted):
    backbone = TinyBackbone()
    pyramid = FeaturePyramid(backbone.channels, backbone.strides, wanted, 32)
    levels = pyramid(backbone(torch.randn(1, 3, 70, 98)))
    assert [tuple(level.shape[2:]) for level in levels] == [(-(-70 // s), -(-98 // s)) for s in wanted]


def test_a_backbone_of_transformers_stands_in():
    small = {"model_type": "resnet", "layer_type": "basic", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
    backbone = new_backbone({**small, "embedding_size": 8})
    levels = backbone(torch.randn(1, 3, 64, 64))
    assert backbone.channels == [8, 16, 24, 32] and [level.shape[-1] for level in levels] == [16, 8, 4, 2]


def test_what_is_unknown_is_refused():
    with pytest.raises(ConfigError, match="backbone='huge'"):
        new_backbone("huge")
    with pytest.raises(ConfigError, match="no model_type"):
        new_backbone({"depths": [1]})
    with pytest.raises(ConfigError, match=r"level_strides=\(32,\)"):
        FeaturePyramid(TinyBackbone().channels, TinyBackbone.strides, (32,), 32)
