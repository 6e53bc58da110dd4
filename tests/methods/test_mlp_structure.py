"""Which parts a feed-forward layer has, told by their names."""

import causal_models as models
import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.mlp_structure import MlpStructure, mlp_structures

# Chunks that divide neither 3 rows of 19 tokens nor 57 tokens.
METHOD = {"chunk_size": 8, "head_chunk_size": 5}


def test_a_user_can_name_the_parts_of_another_layer():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow, self.bend = nn.Linear(8, 32), nn.Linear(32, 8), nn.Tanh()

        def forward(self, x):
            return self.narrow(self.bend(self.wide(x)))

    model, x = nn.Sequential(Layer(), Layer()), torch.randn(50, 8)
    with pytest.raises(ConfigError, match="no part that can be changed"):
        fw.apply(model, fw.MsT())
    mlp_structures.register("wide and narrow", MlpStructure(("wide",), "narrow", activation=("bend",)))
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))

    report = fw.apply(model, fw.MsT(chunk_size=8))

    assert [row[2] for row in report.section("Modules").rows[:2]] == ["in chunks (wide and narrow)"] * 2
    for one, other in zip(torch.autograd.grad(model(x).sum(), list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_layer_that_computes_something_else_is_left_alone():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
            self.act_fn = nn.SiLU()

        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))  # a sum, not a product

    with pytest.raises(ConfigError, match="come out differently"):
        fw.apply(nn.Sequential(Odd()), fw.MsT())


def test_hooks_on_the_parts_of_a_layer_still_run():
    model, inputs = models.causal_model("llama"), models.batch()
    seen = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    expected = models.loss_and_gradients(model, inputs)
    fw.apply(model, fw.MsT(**METHOD))
    seen.clear()

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)
    assert sum(seen) == 2 * 57  # every token in the forward pass and in its repetition
