"""What may be wished."""

import pytest

import featherweight as fw
from featherweight.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_reduction": 1.0}, "expected 0 < rank_reduction < 1"),
        ({"rank_reduction": 0.5, "param_ratio": 0.5}, "two budgets"),
        ({"param_ratio": 0.5, "train": "lrc"}, "expected rank_reduction"),
        ({"storag": "auto"}, "storage"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        fw.WeLore(**options)
