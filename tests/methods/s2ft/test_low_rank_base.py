"""S2FT on layers that WeLore cut: trained beside the factors, merged into an ordinary layer with their product."""

import copy

import peft
import pytest
import torch
from causal_models import batch, causal_model

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.low_rank_model import low_rank_modules, merge_low_rank
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.merge import merge_into
from featherweight.methods.s2ft.method import S2FT
from featherweight.methods.sealed_folder import RECORD
from featherweight.models import load_model
from featherweight.nn.low_rank_linear import LowRankLinear, PivotedLinear


def cut(storage, architecture="llama", dtype=torch.float64):
    model = causal_model(architecture, dtype).eval()
    fw.apply(model, fw.WeLore(rank_reduction=0.5, min_dim=16, storage=storage))
    return model


def filled(model, names=("default",)):
    generator = torch.Generator().manual_seed(0)
    for layer in s2ft_layers(model).values():
        for name in names:
            delta = layer.s2ft_delta[name]
            delta.data = torch.randn(delta.shape, generator=generator, dtype=torch.float64).to(delta) * 0.1
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"]).logits


STORAGES = pytest.mark.parametrize("storage", ["factored", "pivoted"])
# float64: the product of the factors is rounded once more than two products one after the other
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@STORAGES
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_switch_merges_into_the_product_and_brings_the_factors_back_bit_by_bit(storage, architecture):
    base = cut(storage, architecture)
    plain, before = logits(base), copy.deepcopy(base.state_dict())
    model = peft.get_peft_model(base, fw.S2FTConfig(num_channels=8))
    model.add_adapter("second", fw.S2FTConfig(num_channels=8, seed=1))
    filled(model, ["default", "second"])
    expected = {}
    for name in ("second", "default"):
        model.set_adapter(name)
        expected[name] = logits(model)
        assert (expected[name] - plain).abs().max() > 0.01

    for name in ("default", "second", "default"):
        fw.s2ft.switch(model, name)
        torch.testing.assert_close(logits(model), expected[name], **CLOSE)
    fw.s2ft.switch(model, None)

    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    after = model.unload().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@STORAGES
def test_an_adapter_is_added_beside_a_merged_one(storage):
    model = filled(peft.get_peft_model(cut(storage), fw.S2FTConfig(num_channels=8)))
    expected = logits(model)
    fingerprint = model.peft_config["default"].base_fingerprint
    fw.s2ft.switch(model, "default")
    with pytest.warns(UserWarning, match="Unmerging"):
        model.add_adapter("second", fw.S2FTConfig(num_channels=8, seed=1))

    assert model.peft_config["second"].base_fingerprint == fingerprint
    torch.testing.assert_close(logits(model), expected, **CLOSE)


@STORAGES
@pytest.mark.parametrize("way", ["merge_and_unload", "merge_into"])
def test_a_merged_model_is_saved_and_loaded_with_the_ranks_that_are_left(storage, way, tmp_path):
    model = filled(peft.get_peft_model(cut(storage), fw.S2FTConfig(num_channels=8, target_modules=["down_proj"])))
    expected = logits(model)
    if way == "merge_into":
        model.save_pretrained(tmp_path / "adapter")
        merged = cut(storage)
        merge_into(merged, fw.s2ft.Adapter.load(tmp_path / "adapter"))
    else:
        merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")

    torch.testing.assert_close(logits(merged), expected, **CLOSE)
    assert type(merged.model.layers[0].mlp.down_proj) is torch.nn.Linear
    left = low_rank_modules(merged)
    assert left and left.keys() == getattr(merged.config, RECORD)["rank_pattern"].keys()
    loaded = load_model(str(tmp_path / "merged"), dtype=torch.float64).eval().state_dict()
    assert loaded.keys() == merged.state_dict().keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in merged.state_dict().items())


@STORAGES
def test_an_adapter_trains_beside_factors_as_beside_their_product(storage):
    product = cut(storage)
    merge_low_rank(product)
    losses = []
    for base in (cut(storage), product):
        model = peft.get_peft_model(base, fw.S2FTConfig(num_channels=8)).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            loss = model(**batch(), use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@STORAGES
def test_a_bank_serves_adapters_of_a_cut_model(storage):
    model = filled(peft.get_peft_model(cut(storage), fw.S2FTConfig(num_channels=8)))
    with fw.s2ft.AdapterBank(cut(storage)) as bank:
        bank.add("a", fw.s2ft.Adapter.of_model(model))
        found = bank(input_ids=batch()["input_ids"], adapters=["a", "a", "a"]).logits
    torch.testing.assert_close(found, logits(model), **CLOSE)


@STORAGES
def test_all_linear_takes_layers_of_low_rank_whole(storage):
    model = filled(peft.get_peft_model(cut(storage), fw.S2FTConfig(num_channels=8, target_modules="all-linear")))
    expected = logits(model)
    kinds = {type(layer.get_base_layer()) for layer in s2ft_layers(model).values()}
    assert kinds & {LowRankLinear, PivotedLinear}
    assert not any(name.endswith((".U", ".V")) for name in s2ft_layers(model))
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, **CLOSE)


def test_what_cannot_work_on_a_cut_model_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"a factor of the low-rank layer 'model\.layers\.0\.mlp\.down_proj'"):
        peft.get_peft_model(cut("factored"), fw.S2FTConfig(num_channels=2, target_modules=["down_proj.U"]))
    with pytest.raises(ConfigError, match="update='inplace' does not go with low rank"):
        peft.get_peft_model(cut("pivoted"), fw.S2FTConfig(num_channels=8, update="inplace"))
    model = causal_model("llama")
    fw.apply(model, fw.InRank(buffer=2))
    with pytest.raises(ConfigError, match="ranks still grow"):
        peft.get_peft_model(model, fw.S2FTConfig(num_channels=8))
    model = causal_model("llama")
    method = fw.InRank(buffer=2, activation="silu")
    fw.apply(model, method)
    method.freeze(model)
    with pytest.raises(ConfigError, match="has activation='silu' between its factors"):
        peft.get_peft_model(model, fw.S2FTConfig(num_channels=8))


@STORAGES
def test_a_recipes_folders_are_an_adapter_and_a_model_with_the_ranks_that_are_left(storage, tmp_path):
    model = cut(storage)
    record = copy.deepcopy(getattr(model.config, RECORD))
    method = S2FT(num_channels=8, target_modules=["down_proj"])
    fw.apply(model, method)
    filled(model)
    expected = logits(model)
    with method.saving(model, tmp_path / "model"):
        model.save_pretrained(tmp_path / "model")

    assert getattr(model.config, RECORD) == record
    assert torch.equal(logits(model), expected)
    torch.testing.assert_close(
        logits(load_model(str(tmp_path / "model"), dtype=torch.float64).eval()), expected, **CLOSE
    )
    fw.remove(model, method)
    assert low_rank_modules(model).keys() == record["rank_pattern"].keys()
