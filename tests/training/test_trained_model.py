"""The model of a recipe: its precision, its methods."""

import torch

from featherweight.training.trained_model import build_trained_model, cast_weights


def test_the_model_has_the_precision_and_the_methods_of_the_recipe(recipe):
    one = recipe(
        precision="bf16", optimizer={"name": "galore", "rank": 4, "layerwise": True}, methods=["core_gradient"]
    )
    model, methods = build_trained_model(one, one.build_task())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert [type(method).__name__ for method in methods] == ["CoreGradient"]


def test_buffers_keep_their_precision():
    model = torch.nn.BatchNorm1d(3)
    cast_weights(model, torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16 and model.running_mean.dtype == torch.float32
