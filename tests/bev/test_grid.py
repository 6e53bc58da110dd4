import numpy as np
import pytest

from featherweight.bev.grid import BEVGridConfig
from featherweight.errors import ConfigError


def test_the_default_grid_is_that_of_the_published_labels():
    grid = BEVGridConfig()
    assert grid.shape == (196, 200)
    assert grid.depths()[0] == 1.0 and grid.depths()[-1] == 49.75
    assert grid.laterals()[0] == -25.0 and grid.laterals()[-1] == 24.75


@pytest.mark.parametrize("anchor", ["corner", "center"])
def test_the_index_of_a_cells_anchor_is_its_number(anchor):
    grid = BEVGridConfig(anchor=anchor)
    column, row = np.meshgrid(np.arange(grid.columns), np.arange(grid.rows))
    np.testing.assert_allclose(grid.index(grid.points()[..., :2]), np.stack([column, row], axis=-1), atol=1e-9)


def test_an_extent_that_is_no_whole_number_of_cells_is_refused():
    with pytest.raises(ConfigError, match="whole number"):
        BEVGridConfig.parse({"z_max": 50.1})
