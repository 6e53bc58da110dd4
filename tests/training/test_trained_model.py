"""The model of a recipe: its precision, its checkpointing."""

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.training.trained_model import cast_weights, fit_to_recipe


def test_the_model_has_the_precision_of_the_recipe(recipe):
    model = torch.nn.Linear(3, 3)
    fit_to_recipe(model, recipe(precision="bf16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_model_that_cannot_compute_activations_again_is_refused(recipe):
    with pytest.raises(ConfigError, match="activation_checkpointing=True is unknown to the model Linear"):
        fit_to_recipe(torch.nn.Linear(3, 3), recipe(activation_checkpointing=True))


def test_buffers_keep_their_precision():
    model = torch.nn.BatchNorm1d(3)
    cast_weights(model, torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16 and model.running_mean.dtype == torch.float32
