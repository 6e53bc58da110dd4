"""Limits."""

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.safety.config import SafetyConfig


def test_wrong_limits_are_one_sentence():
    with pytest.raises(ConfigError, match="max_speed_deg_s=500"):
        SafetyConfig(max_speed_deg_s=500)
