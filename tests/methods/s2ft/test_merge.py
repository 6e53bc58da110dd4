"""Merging an adapter for good, and what is told of one."""

import pytest
import torch
from causal_models import causal_model
from s2ft_models import logits, with_adapters

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.s2ft.merge import describe, merge_into


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
def test_a_merged_model_is_the_plain_one_with_the_logits_of_the_adapter(architecture):
    model = with_adapters(architecture, torch.float64, default={})
    plain = causal_model(architecture, torch.float64).eval()
    names = list(plain.state_dict())
    merge_into(plain, fw.s2ft.Adapter.of_model(model))
    assert list(plain.state_dict()) == names
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-12, atol=1e-12)  # fp64 in another order


def test_another_model_or_quantised_weights_are_refused_and_stay_as_they_were():
    adapter = fw.s2ft.Adapter.of_model(with_adapters(default={}))
    other = causal_model("llama")
    torch.nn.init.normal_(other.model.layers[0].mlp.down_proj.weight)
    int8 = causal_model("llama")
    fw.apply(int8, fw.Int8())
    for model, error in ((other, CheckpointError), (int8, ConfigError)):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(error):
            merge_into(model, adapter)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_report_counts_what_the_adapter_trains():
    adapter = fw.s2ft.Adapter.of_model(with_adapters(default={}))
    report = describe(adapter)
    facts, table = report.sections[0].facts, report.section("Modules")
    assert facts["trained parameters"] == adapter.parameters and facts["modules"] == len(table.rows) == 4
    assert facts["bytes of changes"] == 4 * adapter.parameters
