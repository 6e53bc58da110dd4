"""A network between physical fields carries the scales of its data."""

import json

import torch
from torch import nn

from featherweight.pde.operator import FieldOperator


def operator(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (scale * torch.randn(6, 2, 5, generator=generator) + 3 for scale in (10.0, 0.01))
    torch.manual_seed(seed)
    return FieldOperator(nn.Conv1d(2, 2, 1), x, y), x, y


def test_the_network_sees_fields_of_mean_0_and_deviation_1_and_answers_in_units_of_the_data():
    model, x, y = operator()
    seen = []
    model.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    out = model(x)
    torch.testing.assert_close(seen[0].mean(dim=(0, 2)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[0].std(dim=(0, 2)), torch.ones(2))
    expected = model.model(seen[0]) * y.std(dim=(0, 2), keepdim=True) + y.mean(dim=(0, 2), keepdim=True)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-6)


def test_a_network_of_sixteen_bits_answers_in_the_type_of_its_input():
    model, x, _ = operator()
    assert model.to(torch.bfloat16)(x).dtype == torch.float32


def test_what_is_saved_comes_back_with_its_scales_and_the_network_alone_has_plain_names(tmp_path):
    model, x, _ = operator()
    other = operator(seed=1)[0]
    model.save(tmp_path, {"n_layers": 1})
    other.load(tmp_path)
    assert torch.equal(other(x), model(x))
    assert set(torch.load(tmp_path / "model.pt", weights_only=True)) == {"weight", "bias"}
    assert json.loads((tmp_path / "config.json").read_text()) == {"n_layers": 1}
