"""Applying methods, removing them, and reading them from a recipe."""

import causal_models as models
import pytest

import featherweight as fw
from featherweight.errors import ConfigError


def test_applying_twice_and_removing_what_is_not_there_are_errors():
    model = models.causal_model("llama")
    with pytest.raises(ConfigError, match="is not applied"):
        fw.remove(model, fw.MsT())
    fw.apply(model, fw.MsT())

    with pytest.raises(ConfigError, match="applied to this model already"):
        fw.apply(model, fw.MsT(head=False))
    with pytest.raises(ConfigError, match="has an owner already"):
        fw.apply(model.model, fw.MsT())
    with pytest.raises(ConfigError, match="is no method"):
        fw.apply(model, fw.MsT)
