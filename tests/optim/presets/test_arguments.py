"""Signature, help and completion of the arguments of every preset."""

import inspect

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.optim import (
    GaLoreAdamW,
)
from featherweight.optim.options import options_of
from featherweight.optim.presets.arguments import arguments_of


def weight():
    return nn.Parameter(torch.ones(10, 12))


PRESETS = ["AdamW", "Apollo", "ApolloMini", "Fira", "GUM", "GaLoreAdafactor", "GaLoreAdamW", "LDAdamW", "QGaLoreAdamW"]
PRESETS += ["Scale", "TensorGRaD", "TensorGaLoreAdamW"]


@pytest.mark.parametrize("name", PRESETS)
def test_signature_and_help_of_a_preset_name_every_option_with_its_default(name):
    preset = getattr(fw.optim, name)
    shown = inspect.signature(preset).parameters
    for key, default in arguments_of(preset).defaults.items():
        assert shown[key].default == default
        assert f"\n    {key}: " in preset.__doc__
        assert options_of(arguments_of(preset).family)[key].allows(default) or key in ("rank", "scale")


@pytest.mark.parametrize("name", PRESETS)
def test_an_unknown_argument_is_refused_with_its_nearest_name(name):
    with pytest.raises((TypeError, ConfigError), match="wieght_decay"):
        getattr(fw.optim, name)([weight()], wieght_decay=0.1)


def test_options_go_by_position_as_in_torch():
    optimizer = GaLoreAdamW([weight()], 0.5, (0.8, 0.9), 1e-4, 0.1, rank=2)
    found = [optimizer.defaults[key] for key in ("lr", "betas", "eps", "weight_decay")]
    assert found == [0.5, (0.8, 0.9), 1e-4, 0.1]
    with pytest.raises(TypeError, match="several values for argument 'lr'"):
        GaLoreAdamW([weight()], 0.5, lr=0.5)
    with pytest.raises(TypeError, match="takes 4 options by position: lr, betas, eps"):
        GaLoreAdamW([weight()], 0.5, (0.8, 0.9), 1e-4, 0.1, 128)
