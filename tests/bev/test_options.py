import pytest

from featherweight.bev.options import BEVConfig, new_model_config
from featherweight.errors import ConfigError


def test_published_labels_keep_the_cells_of_the_preset_and_anchor_them_at_corners():
    config = new_model_config(BEVConfig(data="x", label_mode="pon"), ["scene-0001"])
    assert config.bev_grid.anchor == "corner" and config.bev_grid.shape == (98, 100)
    assert config.label_mode == "pon" and config.trained_sequences == ["scene-0001"]


def test_changes_of_the_network_win_over_the_preset():
    assert new_model_config(BEVConfig(data="x", model={"view_transform": "ipm"})).view_transform == "ipm"


@pytest.mark.parametrize("change", [{"flip": 1.5}, {"label_mode": "both"}, {"datta": "x"}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ConfigError):
        BEVConfig.parse({"data": "x", **change})
