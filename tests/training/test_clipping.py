import pytest
import torch

from featherweight.training.clipping import clip_, gradient_norm


def model_with_gradients(*values):
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1)) for _ in values])
    for parameter, value in zip(model, values, strict=True):
        parameter.grad = None if value is None else torch.tensor([value])
    return model


def test_gradients_are_scaled_down_to_the_limit_and_the_norm_is_that_before():
    model = model_with_gradients(3.0, None, 4.0)
    assert clip_(model, None) == clip_(model, 6.0) == 5.0
    assert [float(model[0].grad), float(model[2].grad)] == [3.0, 4.0]
    assert clip_(model, 1.0) == 5.0
    # torch divides by norm + 1e-6.
    assert float(gradient_norm([model[0].grad, model[2].grad])) == pytest.approx(1.0, rel=1e-6)


def test_a_norm_that_is_not_finite_leaves_the_gradients_alone():
    model = model_with_gradients(3.0, float("inf"))
    assert clip_(model, 1.0) == float("inf") and float(model[0].grad) == 3.0


def test_the_norm_of_bf16_gradients_is_summed_in_float32():
    # 40000 equal elements: a sum kept in bfloat16 (8 bits) stops growing far too early.
    gradient = torch.full((40_000,), 0.5, dtype=torch.bfloat16)
    assert gradient_norm([gradient]).item() == pytest.approx(100.0, rel=1e-5)
    assert gradient_norm([]).item() == 0.0
