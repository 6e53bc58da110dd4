"""Heads (modules_to_save) and biases travel with an adapter: merged, exchanged, summed, saved and exported."""

import copy

import peft
import pytest
import torch
from causal_models import batch, causal_model
from transformers import LlamaConfig, LlamaForSequenceClassification

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.merge import merge_into
from featherweight.models import load_model


def trained(model, seed=0):
    """Give everything that trains other values."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "s2ft_delta" in name:
            change = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1
            parameter.data += change
    return model.eval()


def classifier():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, vocab_size=61, pad_token_id=0, num_labels=3)).eval()


def with_heads():
    """Return a classifier with adapters "a" and "b", each with a head of its own, and "c" without one."""
    options = {"num_channels": 8, "modules_to_save": ["score"]}
    model = peft.get_peft_model(classifier(), fw.S2FTConfig(**options), adapter_name="a")
    model.add_adapter("b", fw.S2FTConfig(**options, seed=1))
    model.add_adapter("c", fw.S2FTConfig(num_channels=8, seed=2))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "s2ft_delta" in name or "modules_to_save" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def answers(model):
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"]).logits


def expected_answers(model, names="abc"):
    """Return what each adapter answers as PEFT has it."""
    found = {}
    for name in names:
        model.set_adapter(name)
        found[name] = answers(model)
    model.set_adapter("a")
    return found


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama with biases", {"bias": "all"}),
        ("llama with biases", {"bias": "s2ft_only"}),
        ("smollm", {"modules_to_save": ["lm_head"]}),
        ("gpt2", {"bias": "all", "modules_to_save": ["ln_f"]}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:.*tied")
def test_a_merged_file_computes_what_the_adapter_did_and_survives_saving(architecture, options, tmp_path):
    model = trained(peft.get_peft_model(causal_model(architecture), fw.S2FTConfig(num_channels=8, **options)))
    expected = answers(model)
    model.save_pretrained(tmp_path / "adapter")
    plain = causal_model(architecture).eval()
    merge_into(plain, fw.s2ft.Adapter.load(tmp_path / "adapter"))
    plain.save_pretrained(tmp_path / "merged")

    torch.testing.assert_close(answers(plain), expected, rtol=1e-5, atol=1e-5)
    reloaded = load_model(str(tmp_path / "merged")).eval()
    assert torch.equal(answers(reloaded), answers(plain))


def test_a_base_without_the_head_is_refused_and_stays_as_it_was(tmp_path):
    model = trained(peft.get_peft_model(classifier(), fw.S2FTConfig(num_channels=8, modules_to_save=["score"])))
    adapter = fw.s2ft.Adapter.of_model(model)
    torch.manual_seed(0)
    config = copy.deepcopy(classifier().config)
    config.num_labels = 5
    other = LlamaForSequenceClassification(config)
    other.load_state_dict({k: v for k, v in classifier().state_dict().items() if "score" not in k}, strict=False)
    before = copy.deepcopy(other.state_dict())

    with pytest.raises(CheckpointError, match=r"trains 'score\.weight' \(3, 32\) whole.*shape \(5, 32\)"):
        merge_into(other, adapter)

    assert all(torch.equal(before[name], weight) for name, weight in other.state_dict().items())


def test_switch_exchanges_heads_and_back_without_touching_what_trains():
    model = with_heads()
    expected = expected_answers(model)
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name in ("b", "c", "a", "b"):
        fw.s2ft.switch(model, name)
        torch.testing.assert_close(answers(model), expected[name], rtol=1e-5, atol=1e-5)
    fw.s2ft.switch(model, None)

    assert torch.equal(answers(model), expected["a"])  # nothing is merged: the active adapter acts, with its head
    assert trains == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(ConfigError, match=r"adapters=\['a', 'b'\] each have a 'score'.*fuse"):
        fw.s2ft.switch(model, ["a", "b"])
    fw.s2ft.switch(model, ["c", "b"])  # one head among them


def test_every_way_of_merging_takes_the_head_along():
    expected = expected_answers(with_heads())
    model = with_heads()
    model.merge_adapter(["b"])
    torch.testing.assert_close(answers(model), expected["b"], rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(answers(model), answers(classifier()), rtol=1e-5, atol=1e-5)
    assert torch.equal(answers(model), expected["a"])
    model.merge_adapter(["b"])
    model.unmerge_adapter()
    assert torch.equal(answers(model), expected["a"])
    torch.testing.assert_close(
        answers(with_heads().merge_and_unload(adapter_names=["b"])), expected["b"], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        answers(with_heads().merge_and_unload(adapter_names=["c"])), expected["c"], rtol=1e-5, atol=1e-5
    )


def test_fuse_sums_heads_as_changes_of_the_base():
    model = with_heads()
    expected = expected_answers(model)
    fw.s2ft.fuse(model, ["a"], [1.0], name="same")
    fw.s2ft.fuse(model, ["a", "b", "c"], [0.5, 2.0, 1.0], name="sum")
    assert model.active_adapter == "a" and torch.equal(answers(model), expected["a"])

    model.set_adapter("same")
    assert torch.equal(answers(model), expected["a"])
    head = model.base_model.model.score
    base, first, second = (
        one.weight.double() for one in (head.original_module, head.modules_to_save["a"], head.modules_to_save["b"])
    )
    # float32: the sum is rounded once
    torch.testing.assert_close(
        head.modules_to_save["sum"].weight.double(),
        base + 0.5 * (first - base) + 2 * (second - base),
        rtol=1e-6,
        atol=1e-7,
    )
    with pytest.raises(ConfigError, match="combination_type='ties' does not go with"):
        fw.s2ft.fuse(model, ["a", "b"], name="ties", combination_type="ties", density=0.5)
    assert "ties" not in model.peft_config


def test_fused_files_hold_heads_and_biases_and_load(tmp_path):
    def adapter(seed, **options):
        config = fw.S2FTConfig(num_channels=8, seed=seed, **options)
        return trained(peft.get_peft_model(causal_model("llama with biases"), config), seed)

    whole = adapter(0, modules_to_save=["lm_head"], bias="all")
    expected = answers(whole)
    files = {"a": fw.s2ft.Adapter.of_model(whole), "b": fw.s2ft.Adapter.of_model(adapter(1, bias="s2ft_only"))}
    fw.s2ft.fuse_adapters({"a": files["a"]}, [1.0]).save(tmp_path / "same")

    loaded = peft.PeftModel.from_pretrained(causal_model("llama with biases"), tmp_path / "same").eval()
    assert torch.equal(answers(loaded), expected)

    with pytest.raises(ConfigError, match=r"add up to 1\.5; expected 1, or the base.*Give base="):
        fw.s2ft.fuse_adapters(files, [1.0, 0.5])
    base = causal_model("llama with biases")
    fw.s2ft.fuse_adapters(files, [1.0, 0.5], base=base).save(tmp_path / "sum")
    fused = fw.s2ft.Adapter.load(tmp_path / "sum")
    key = "base_model.model.model.layers.0.mlp.down_proj.base_layer.bias"
    bias = base.model.layers[0].mlp.down_proj.bias
    torch.testing.assert_close(
        fused.extra[key], files["a"].extra[key] + 0.5 * (files["b"].extra[key] - bias), rtol=1e-6, atol=1e-7
    )
    assert fused.config["modules_to_save"] == ["lm_head"] and fused.config["bias"] == "all"
    assert fused.fingerprint.keys() == fused.modules.keys()
    merged = causal_model("llama with biases").eval()
    merge_into(merged, fused)
    loaded = peft.PeftModel.from_pretrained(causal_model("llama with biases"), tmp_path / "sum").eval()
    torch.testing.assert_close(answers(loaded), answers(merged), rtol=1e-5, atol=1e-5)


def test_an_adapter_with_biases_shares_a_model_with_no_other():
    model = peft.get_peft_model(causal_model("llama with biases"), fw.S2FTConfig(num_channels=8, bias="all"))
    with pytest.raises(ConfigError, match="bias='all' of adapter='default' trains the biases of the base itself"):
        model.add_adapter("second", fw.S2FTConfig(num_channels=8))
    with pytest.raises(ConfigError, match="fuse_adapters adds up files"):
        fw.s2ft.fuse(model, ["default"], name="again")
    assert list(model.peft_config) == ["default"]
    assert {name for layer in s2ft_layers(model).values() for name in layer.s2ft_delta} == {"default"}


def test_a_bank_refuses_adapters_with_a_head():
    adapter = fw.s2ft.Adapter.of_model(with_heads(), "a")
    with fw.s2ft.AdapterBank(classifier()) as bank:
        bank.add("a", adapter)
        with pytest.raises(ConfigError, match="also trains"):
            bank.prefetch(["a"])
