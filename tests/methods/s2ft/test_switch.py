"""Exchanging the adapter that is merged."""

import pytest
import torch
from s2ft_models import logits, with_adapters

import featherweight as fw
from featherweight.errors import ConfigError


def test_switch_gives_the_adapter_and_brings_the_base_back():
    model = with_adapters("llama", torch.float64, math={}, code={"seed": 1})
    expected = {}
    for name in ("math", "code"):
        model.set_adapter(name)
        expected[name] = logits(model)
    with model.disable_adapter():
        plain = logits(model)

    for name in ("math", "code", "math"):
        fw.s2ft.switch(model, name)
        torch.testing.assert_close(logits(model), expected[name], rtol=1e-9, atol=1e-9)
    fw.s2ft.switch(model, None)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    with pytest.raises(ConfigError, match="Did you mean 'math'"):
        fw.s2ft.switch(model, "maths")
