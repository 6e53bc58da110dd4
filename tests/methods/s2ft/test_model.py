"""The tuner: configurations, resuming, deleting, selecting modules, an adapter for each row."""

import peft
import pytest
import torch
from causal_models import batch, causal_model
from s2ft_models import adapted, filled, logits, with_adapters

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.s2ft.layer import s2ft_layers


def test_a_configuration_object_serves_several_models_and_a_loaded_one_none_without_its_file(tmp_path):
    config = fw.S2FTConfig(num_channels=8)
    first, second = (peft.get_peft_model(causal_model(kind), config) for kind in ("llama", "mistral"))
    assert len(s2ft_layers(first)) == len(s2ft_layers(second)) == 4
    first.save_pretrained(tmp_path)

    alone = peft.get_peft_model(causal_model("llama"), peft.PeftConfig.from_pretrained(tmp_path))

    with pytest.raises(CheckpointError, match="has no channels yet"):
        logits(alone)


def test_training_resumes_bit_by_bit(tmp_path):
    def step(model, optimizer, number):
        model(**batch(seed=number)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def start(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    model = peft.get_peft_model(causal_model("llama"), fw.S2FTConfig(num_channels=8))
    optimizer = start(model)
    for number in range(4):
        if number == 2:
            model.save_pretrained(tmp_path)
            torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        step(model, optimizer, number)

    resumed = peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path, is_trainable=True).train()
    optimizer = start(resumed)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for number in (2, 3):
        step(resumed, optimizer, number)

    for one, other in zip(s2ft_layers(model).values(), s2ft_layers(resumed).values(), strict=True):
        assert torch.equal(one.s2ft_delta["default"], other.s2ft_delta["default"])
        assert torch.equal(one.s2ft_indices["default"], other.s2ft_indices["default"])


def test_a_mixed_batch_equals_one_by_one():
    model = with_adapters("llama", torch.float64, a={}, b={"seed": 1, "axis_pattern": {"down_proj": "output"}})
    names = ["b", "__base__", "a", "a", "b"]
    ids = torch.randint(61, (5, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed = model(input_ids=ids, adapter_names=names).logits
    with_grad = model(input_ids=ids, adapter_names=names).logits

    torch.testing.assert_close(with_grad, mixed, rtol=1e-12, atol=1e-12)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter(), torch.no_grad():
                alone = model(input_ids=ids[row : row + 1]).logits
        else:
            model.set_adapter(name)
            with torch.no_grad():
                alone = model(input_ids=ids[row : row + 1]).logits
        # rows of a batch go through kernels of other shapes
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_generation_with_a_cache_and_beams_equals_one_by_one(beams):
    model = with_adapters("llama", torch.float64, a={"num_channels": 16}, b={"seed": 1})
    filled(model, ["a", "b"], size=1.0)
    ids = torch.randint(2, 61, (3, 5), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    names = ["b", "a", "__base__"]

    mixed = model.generate(input_ids=ids, adapter_names=names, **options)

    for row, name in enumerate(names):
        alone = model.generate(input_ids=ids[row : row + 1], adapter_names=[name], **options)
        assert torch.equal(mixed[row : row + 1], alone)
    assert len({tuple(row[5:].tolist()) for row in mixed}) > 1


def test_mixed_batches_are_refused_where_they_would_be_wrong():
    model = with_adapters("llama", a={})
    ids = batch()["input_ids"]
    with pytest.raises(ValueError, match="Did you mean 'a'"):
        model(input_ids=ids, adapter_names=["a", "aa", "a"])
    with pytest.raises(ValueError, match="do not fit a batch of 3 rows"):
        model(input_ids=ids, adapter_names=["a"])
    with pytest.raises(ValueError, match="training mode"):
        model.train()(input_ids=ids, adapter_names=["a"] * 3)
    fw.s2ft.switch(model.eval(), "a")
    with pytest.raises(ValueError, match="are merged"):
        model(input_ids=ids, adapter_names=["a"] * 3)


def test_adapters_are_deleted_and_set_as_peft_users_know_it():
    model = filled(adapted())
    plain = causal_model("llama").eval()(**batch()).logits
    model.add_adapter("second", fw.S2FTConfig(num_channels=8, seed=1, update="inplace"))
    filled(model)
    model.set_adapter("second")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".second" in name for name in trained)
    second = model.eval()(**batch()).logits
    model.set_adapter("default")
    first = model(**batch()).logits
    assert not torch.allclose(first, second)
    model.delete_adapter("second")
    assert torch.equal(model(**batch()).logits, first)
    with model.disable_adapter():
        assert torch.equal(model(**batch()).logits, plain)
    assert "second" not in str(model.state_dict().keys())


def test_an_adapter_is_added_beside_merged_ones_as_if_they_were_not():
    alone = adapted()
    alone.add_adapter("second", fw.S2FTConfig(num_channels=8, selection="weight"))
    model = filled(adapted(), size=10.0)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):  # PEFT's own way
        model.add_adapter("second", fw.S2FTConfig(num_channels=8, selection="weight"))

    for one, other in zip(*(s2ft_layers(m).values() for m in (model, alone)), strict=True):
        assert torch.equal(one.s2ft_indices["second"], other.s2ft_indices["second"])
    assert model.peft_config["second"].base_fingerprint == alone.peft_config["second"].base_fingerprint


def test_an_encoder_decoder_mixes_adapters_and_beams():
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61}
    base = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **sizes, decoder_start_token_id=0)).double()
    model = adapted(base, num_channels=16)
    model.add_adapter("second", fw.S2FTConfig(num_channels=16, seed=1))
    filled(model, size=2.0).eval()
    ids = torch.randint(2, 61, (3, 5), generator=torch.Generator().manual_seed(0))
    names, options = ["second", "default", "__base__"], {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2}

    mixed = model.generate(input_ids=ids, adapter_names=names, **options)

    for row, name in enumerate(names):
        alone = model.generate(input_ids=ids[row : row + 1], adapter_names=[name], **options)
        assert torch.equal(mixed[row : row + 1], alone)


def test_all_linear_trains_input_channels_of_every_layer_and_is_read_back(tmp_path):
    model = filled(adapted(target_modules="all-linear"))
    layers = s2ft_layers(model)
    assert len(layers) == 14 and {layer.s2ft_axis["default"] for layer in layers.values()} == {"input"}
    expected = model.eval()(**batch()).logits
    model.save_pretrained(tmp_path)

    loaded = peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path).eval()

    assert torch.equal(loaded(**batch()).logits, expected)


def test_a_regular_expression_and_exclusion_select_modules():
    model = adapted(target_modules=r".*\.0\.(mlp\.down_proj|self_attn\.o_proj)", exclude_modules=["o_proj"])
    assert list(s2ft_layers(model)) == ["model.layers.0.mlp.down_proj"]


def test_another_methods_layers_are_refused():
    base = causal_model("llama")
    peft.LoraModel(base, {"lora": peft.LoraConfig(target_modules=["o_proj"])}, "lora")
    with pytest.raises((ConfigError, UserWarning)):
        adapted(base)
