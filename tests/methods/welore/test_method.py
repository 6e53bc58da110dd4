"""WeLore applied, trained, combined and removed."""

import copy
import math

import pytest
import torch
from causal_models import batch, causal_model, logits
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError, NumericsError
from featherweight.linalg import spectrum as sp
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.methods.welore import rank_reduction
from featherweight.methods.welore.plan import find_targets
from featherweight.nn.low_rank_linear import LowRankLinear

SMALL = {"min_dim": 8}


STORAGES = ["auto", "factored", "pivoted", "dense"]
OTHERS = ["llama with biases", "smollm", "phi3", "gpt_neox", "qwen3", "olmo2"]


@pytest.mark.parametrize(
    ("name", "storage"),
    [*((name, storage) for name in ("llama", "gpt2") for storage in STORAGES), *((name, "auto") for name in OTHERS)],
)
def test_the_model_computes_with_the_truncated_matrices_whatever_their_storage(name, storage):
    model = causal_model(name, torch.float64).eval()
    twin = copy.deepcopy(model)
    options = fw.WeLore(rank_reduction=0.4, storage=storage, **SMALL)

    report = fw.apply(model, options)

    targets, _ = find_targets(twin, options)
    spectra = {n: torch.linalg.svdvals(m.weight.detach()) for n, m in targets.items()}
    ranks = sp.quantile_ranks(spectra, 0.4).ranks
    for target, linear in targets.items():
        left, values, right = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
        rank = ranks[target]
        linear.weight.data = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close(logits(model), logits(twin), rtol=0, atol=1e-9)
    total = sum(len(s) for s in spectra.values())
    assert rank_reduction(report) == pytest.approx(math.floor(0.4 * total) / total, abs=1e-6)
    assert not any("lm_head" in n or "embed_out" in n for n in low_rank_modules(model))

    fw.remove(model, options)

    assert not low_rank_modules(model)
    assert {n: (type(m), m.training) for n, m in model.named_modules()} == {
        n: (type(m), m.training) for n, m in twin.named_modules()
    }
    torch.testing.assert_close(logits(model), logits(twin), rtol=0, atol=1e-9)
    assert all(p.requires_grad for p in model.parameters())


def test_only_low_rank_components_are_cut_and_trained():
    model = causal_model("llama").eval()
    # Give one kind of layer a steep spectrum, as training does.
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 0.01
        layer.self_attn.q_proj.weight.data += torch.outer(torch.ones(32), torch.linspace(-1, 1, 32))
    before = copy.deepcopy(model.state_dict())
    fw.apply(model, fw.WeLore(rank_reduction=0.3, train="lrc", train_norms=False, **SMALL))
    cut = low_rank_modules(model)
    assert cut and all(isinstance(m, LowRankLinear) for m in cut.values())  # factors are what one trains
    assert all(m.rank <= 0.5001 * min(m.in_features, m.out_features) for m in cut.values())
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{n}.{part}.weight" for n in cut for part in ("U", "V")}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items() if n in after)
    assert len([n for n in before if n in after]) == len(before) - len(cut)
    state = sum(v.numel() for s in optimizer.state.values() for k, v in s.items() if k != "step")
    assert state == 2 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_norms_and_the_other_matrices_train_where_asked():
    model = causal_model("llama")
    fw.apply(model, fw.WeLore(threshold=0.5, scope="lrc", train="nlrc", **SMALL))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {"model.norm.weight", "model.layers.0.input_layernorm.weight"} <= names
    cut = low_rank_modules(model)
    assert not any(n.startswith(tuple(cut)) or "embed" in n or "lm_head" in n for n in names)
    fw.remove(model, fw.WeLore())
    assert all(p.requires_grad for p in model.parameters())


def test_a_compressed_model_is_left_alone_the_second_time():
    model = causal_model("llama")
    fw.apply(model, fw.WeLore(rank_pattern={"model.layers.1.mlp.up_proj": 5}, **SMALL))
    del model._featherweight_methods
    report = fw.apply(model, fw.WeLore(rank_reduction=0.5, **SMALL))
    assert ["model.layers.1.mlp.up_proj", "unchanged: is of low rank already"] in report.section("Left alone").rows
    assert model.model.layers[1].mlp.up_proj.rank == 5
    with pytest.raises(ConfigError, match="no layer to cut"):
        find_targets(model, fw.WeLore(**SMALL))


def test_models_that_cannot_be_cut_are_refused_and_stay_as_they_are():
    model = causal_model("llama")
    with pytest.raises(ConfigError, match="both sides >= min_dim=64"):
        fw.apply(model, fw.WeLore())
    with pytest.raises(ConfigError, match="calibration=None"):
        fw.apply(model, fw.WeLore(method="whitened", **SMALL))
    with pytest.raises(ConfigError, match=r"rank_pattern\['model.nothing'\]=3"):
        fw.apply(model, fw.WeLore(rank_pattern={"model.nothing": 3}, **SMALL))
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(NumericsError, match="'model.layers.1.mlp.up_proj'"):
        fw.apply(model, fw.WeLore(**SMALL))
    assert not low_rank_modules(model)
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(ConfigError, match="device=meta"):
        fw.apply(meta, fw.WeLore())


def test_dtype_and_bfloat16_rounding():
    model = causal_model("llama").eval()
    narrow = copy.deepcopy(model).bfloat16()
    fw.apply(model, fw.WeLore(rank_reduction=0.3, **SMALL))
    fw.apply(narrow, fw.WeLore(rank_reduction=0.3, **SMALL))
    assert all(p.dtype == torch.bfloat16 for p in narrow.parameters())
    error = float((logits(narrow).float() - logits(model)).norm() / logits(model).norm())
    assert error < 0.1  # 8 bits of precision through two layers, logits of size 10; measured 0.022


def test_lora_goes_on_top_of_factors_and_on_the_dense_rest():
    from peft import LoraConfig, get_peft_model

    model = causal_model("llama").eval()
    fw.apply(model, fw.WeLore(rank_reduction=0.5, storage="factored", exclude_modules=["o_proj"], **SMALL))
    before = logits(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["U", "V", "o_proj"]))
    assert torch.equal(logits(adapted), before)
    adapted.train()
    optimizer = fw.optim.GaLoreAdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, rank=1)
    losses = []
    for _ in range(8):
        loss = adapted(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    expected = logits(adapted.eval())
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    fw.merge_low_rank(merged)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)


def test_galore_projects_the_factors_that_are_large_enough():
    model = causal_model("llama")
    fw.apply(model, fw.WeLore(rank_reduction=0.3, storage="factored", **SMALL))
    groups = fw.optim.param_groups(model, rank=4)
    projected = {name for group in groups if group["low_rank"] for name, _ in group["params"]}
    assert projected == {f"{n}.{part}.weight" for n in low_rank_modules(model) for part in ("U", "V")}
    optimizer = fw.optim.GaLoreAdamW(groups, lr=1e-2)
    model(**batch()).loss.backward()
    optimizer.step()
    assert optimizer.state_bytes() < fw.optim.AdamW(model.parameters()).state_bytes()


def test_mini_sequences_go_with_low_rank_layers():
    model = causal_model("llama")
    fw.apply(model, fw.WeLore(rank_reduction=0.3, **SMALL))
    plain = model(**batch()).loss
    fw.apply(model, fw.MsT(chunk_size=8, head_chunk_size=8))
    assert model(**batch()).loss.item() == pytest.approx(plain.item(), abs=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (67, 101), (64, 1), (1, 64)])
def test_single_layers_of_odd_shapes(shape):
    model = nn.ModuleDict({"a": nn.Linear(shape[1], shape[0]), "b": nn.Linear(97, 89)})
    report = fw.apply(model, fw.WeLore(rank_reduction=0.37))
    rows = {row[0]: row for row in report.section("Matrices").rows}
    assert ("a" in rows) == (min(shape) >= 64)
    for name in rows:
        x = torch.randn(0, model[name].in_features)
        assert model[name](x).shape == (0, model[name].out_features)


def test_factors_become_int8_and_merge(tmp_path):
    from featherweight.methods.int8 import dequantized_state_dict

    model = causal_model("llama").eval()
    fw.apply(model, fw.WeLore(rank_reduction=0.5, storage="factored", **SMALL))
    exact = logits(model)
    report = fw.apply(model, fw.Int8())
    layer = model.model.layers[0].mlp.up_proj
    assert layer.U.weight_codes.dtype == layer.V.weight_codes.dtype == torch.int8
    facts = report.section("Facts").facts
    assert facts["after (bytes)"] < 0.6 * facts["before (bytes)"]  # scales of short rows count here
    coded = logits(model)
    assert float((coded - exact).norm() / exact.norm()) < 0.1  # 7 bits through two layers; measured 0.03
    model.save_pretrained(tmp_path, state_dict=dequantized_state_dict(model))
    torch.testing.assert_close(logits(fw.load_low_rank(tmp_path)), coded, rtol=0, atol=1e-4)
    loss = model(**batch()).loss
    optimizer = fw.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model(**batch()).loss < loss
    coded = logits(model)
    fw.merge_low_rank(model)
    assert not low_rank_modules(model)
    torch.testing.assert_close(logits(model), coded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("train", [None, "lrc"])
def test_remove_restores_what_train_changed_and_nothing_else(train):
    model = causal_model("llama with biases")
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    method = fw.WeLore(rank_reduction=0.5, train=train, **SMALL)
    fw.apply(model, method)
    if train is None:
        model.model.norm.requires_grad_(False)
        before["model.norm.weight"] = False
    fw.remove(model, method)
    assert before == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
