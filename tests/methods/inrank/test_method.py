"""InRank applied, frozen, saved, removed and refused."""

import copy
import math

import pytest
import torch
from causal_models import causal_model, logits
from inrank_runs import FAST, train
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError, NumericsError
from featherweight.methods.inrank import InRank
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.nn.low_rank_linear import LowRankLinear


def test_with_w0_the_start_is_the_dense_model_and_merging_adds_it():
    dense = causal_model("llama").eval()
    model = copy.deepcopy(dense)
    method = InRank(**FAST, keep_w0=True, patience=None)
    fw.apply(model, method)
    assert torch.equal(logits(model), logits(dense))  # bit by bit
    bases = {n: m.base.clone() for n, m in low_rank_modules(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    train(model, method, optimizer, 7)
    assert all(torch.equal(m.base, bases[n]) for n, m in low_rank_modules(model).items())
    products = {n: (bases[n] + m.U.weight @ m.V.weight).detach() for n, m in low_rank_modules(model).items()}
    method.freeze(model, optimizer)
    before = logits(model)
    fw.remove(model, method)
    for name, product in products.items():
        # What the ranks do not explain was cut off: at most a tenth of the energy of the update.
        found, update = model.get_submodule(name).weight.detach(), product - bases[name]
        assert float((found - product).norm()) <= math.sqrt(0.1001) * float(update.norm()) + 1e-6
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    assert not low_rank_modules(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("init", ["kaiming", "spectral", "orthogonal"])
def test_initial_factors(init):
    dense = causal_model("llama")
    model = copy.deepcopy(dense)
    fw.apply(model, InRank(init=init, buffer=6, buffer_init="random"))
    layer, linear = model.model.layers[0].mlp.up_proj, dense.model.layers[0].mlp.up_proj
    if init == "spectral":
        # E|y|^2 of isotropic inputs is the square of the norm: that of the dense layer.
        assert float(layer.weight.detach().norm()) == pytest.approx(float(linear.weight.detach().norm()), rel=1e-5)
        left = torch.linalg.svd(linear.weight.detach()).U[:, :8]
        torch.testing.assert_close(left @ (left.mT @ layer.weight.detach()), layer.weight.detach(), rtol=0, atol=1e-4)
    elif init == "orthogonal":
        torch.testing.assert_close(layer.V.weight @ layer.V.weight.mT, torch.eye(8), rtol=0, atol=1e-5)
    else:
        assert float(layer.V.weight.detach().abs().max()) <= 32**-0.5
        assert float(layer.U.weight.detach().abs().max()) <= 16**-0.5
    again = copy.deepcopy(dense)
    fw.apply(again, InRank(init=init, buffer=6, buffer_init="random"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_first_buffer_begins_at_zero_if_wanted():
    model = causal_model("llama").eval()
    twin = copy.deepcopy(model)
    fw.apply(model, InRank(init_rank=3, buffer=6, buffer_init="zero"))
    fw.apply(twin, InRank(init_rank=3, buffer=6, buffer_init="random"))
    for layer, random in zip(low_rank_modules(model).values(), low_rank_modules(twin).values(), strict=True):
        assert layer.rank == 9 and not layer.U.weight[:, 3:].any()
        assert torch.equal(layer.U.weight[:, :3], random.U.weight[:, :3]) and torch.equal(
            layer.V.weight, random.V.weight
        )


def test_a_grown_model_is_an_ordinary_low_rank_folder(tmp_path):
    model = causal_model("llama").eval()
    method = InRank(**FAST)
    fw.apply(model, method)
    train(model, method, torch.optim.AdamW(model.parameters(), lr=2e-2), 6)
    model.save_pretrained(tmp_path)
    loaded = fw.load_low_rank(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    fw.merge_low_rank(loaded)
    report = fw.apply(loaded, fw.WeLore(rank_reduction=0.9, min_dim=8))  # a grown model can be cut further
    kept = {row[0]: row[3] for row in report.section("Matrices").rows}
    ranks = {n: m.rank for n, m in low_rank_modules(model).items()}
    assert sum(kept.values()) < sum(ranks.values())


def test_what_cannot_work_is_refused():
    model = causal_model("llama")
    method = InRank(**FAST)
    with pytest.raises(ConfigError, match="no growing layers"):
        method.after_step(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    with pytest.raises(ConfigError, match="Lower init_rank"):
        fw.apply(model, InRank(init_rank=40))
    before = torch.optim.SGD(list(model.parameters()), lr=0.1)
    fw.apply(model, method)
    for layer in low_rank_modules(model).values():
        torch.nn.init.normal_(layer.U.weight)
    with pytest.raises(ConfigError, match="Build the optimizer from the model's parameters after fw.apply"):
        method.after_step(model, before, 3)
    with pytest.raises(ConfigError, match="applied to this model already"):
        fw.apply(model, method)
    model.model.layers[1].mlp.up_proj.U.weight.data[0] = math.inf
    with pytest.raises(NumericsError, match="'model.layers.1.mlp.up_proj'"):
        method.after_step(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)
    for options in ({"explained": 0.0}, {"explained": 1.1}, {"every": 0}, {"max_rank": 1}, {"unknown": 1}):
        with pytest.raises(ConfigError):
            InRank(**options)


def test_small_layers_stay_dense_and_are_named():
    model = nn.ModuleDict({"wide": nn.Linear(64, 64), "thin": nn.Linear(64, 3), "one": nn.Linear(1, 64)})
    model.update({"first": nn.Linear(64, 64), "second": nn.Linear(64, 64)})
    model["second"].weight = model["first"].weight
    report = fw.apply(model, InRank())
    assert isinstance(model["wide"], LowRankLinear) and isinstance(model["thin"], nn.Linear)
    assert {row[0] for row in report.section("Left dense").rows} == {"thin", "one", "first", "second"}
    assert model["second"].weight is model["first"].weight
    assert model["wide"].rank == 31  # the largest at which two factors are smaller: 31 * 128 < 64 * 64


def test_remove_leaves_frozen_what_the_user_froze_before_and_since():
    model = causal_model("llama with biases")
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.bias.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    frozen = model.model.layers[1].mlp.up_proj.weight.clone()
    report = fw.apply(model, InRank(**FAST))

    assert type(model.model.layers[1].mlp.up_proj) is nn.Linear  # new factors would have replaced what was to stay
    assert "its weight is frozen" in str(report.section("Left dense").rows)
    model.model.norm.requires_grad_(False)
    fw.remove(model, InRank(**FAST))

    before["model.norm.weight"] = False
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, frozen)


def test_a_frozen_base_beside_trained_factors_trains_again_after_remove():
    model = causal_model("llama")
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    method = InRank(**FAST, keep_w0=True)
    fw.apply(model, method)
    fw.remove(model, method)
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_quantised_and_frozen_models_are_told_why_nothing_can_grow():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = causal_model("llama")
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, bitsandbytes.nn.Linear4bit(child.in_features, child.out_features, bias=False))
    with pytest.raises(ConfigError, match="q_proj stays dense: Linear4bit is no plain linear layer.*without quantis"):
        fw.apply(model, InRank(**FAST))
    with pytest.raises(ConfigError, match="its weight is frozen"):
        fw.apply(causal_model("llama").requires_grad_(False), InRank(**FAST))
