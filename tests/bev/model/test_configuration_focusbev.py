import pytest

from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.errors import ConfigError


def test_a_preset_is_changed_by_name():
    config = FocusBEVConfig.preset("tiny", use_cycle=True)
    assert config.use_cycle and config.image_size == (128, 224) and config.bev_grid.shape == (98, 100)
    assert config.feature_grid.shape == (49, 50) and config.feature_grid.anchor == "center"


def test_the_cycle_brings_the_columns_that_it_needs():
    assert FocusBEVConfig.preset("tiny").view_transform == "upright"
    assert FocusBEVConfig.preset("tiny", use_cycle=True).view_transform == "column"
    assert FocusBEVConfig.preset("tiny-columns").level_strides == (4,)


def test_options_survive_a_file(tmp_path):
    config = FocusBEVConfig.preset("base", trained_sequences=["scene-0001"], label_mode="pon")
    config.save_pretrained(tmp_path)
    again = FocusBEVConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view_transform": "lss"}, "view_transform='lss'"),
        ({"hidden_channels": 30}, "hidden_channels=30"),
        ({"view_transform": "ipm", "use_cycle": True}, "no columns to go back"),
        ({"column_chunk": 8}, "column_chunk=8 with view_transform='upright' has no columns"),
        ({"upright_heights": []}, "upright_heights=\\(\\) is empty"),
        ({"depth_step": 0.6}, "depth_step=0.6"),
        ({"level_strides": (16, 8)}, "not ascending"),
        ({"priors": [0.5]}, "priors has 1"),
        ({"classes": "coco"}, "no list of classes"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        FocusBEVConfig.preset("tiny", **changes)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="'tiny'"):
        FocusBEVConfig.preset("tinny")
