import pytest

from featherweight.errors import ConfigError
from featherweight.pde.wave_options import AdvectionConfig, ReactionDiffusionConfig, ShallowWaterConfig


def test_what_is_left_open_gets_a_number_and_what_does_not_fit_is_refused():
    assert ReactionDiffusionConfig(reaction=2.0).resolved().steps == 200
    assert ShallowWaterConfig().resolved().steps > 1
    assert AdvectionConfig(dimensions=2).speeds == [0.4, 0.4]
    with pytest.raises(ConfigError, match="expected one for each axis"):
        AdvectionConfig(dimensions=2, speed=[1.0])
