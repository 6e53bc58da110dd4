"""An adapter by itself: its files, and what they give to a model."""

import json

import peft
import pytest
import torch
from causal_models import causal_model
from s2ft_models import logits, with_adapters

import featherweight as fw
from featherweight.errors import CheckpointError
from featherweight.methods.s2ft.layer import s2ft_layers


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "gpt_neox"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_gives_the_same_logits_bit_by_bit(architecture, low_cpu_mem_usage, tmp_path):
    model = with_adapters(architecture, default={"channel_pattern": {"0.*(o_proj|dense|c_proj)": 3}, "multiple_of": 1})
    expected = logits(model)
    model.save_pretrained(tmp_path)

    loaded = peft.PeftModel.from_pretrained(
        causal_model(architecture), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    loaded.load_adapter(tmp_path, "second", low_cpu_mem_usage=low_cpu_mem_usage)

    assert torch.equal(logits(loaded), expected)
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded), expected)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "S2FT" and config["selection"] == "stored"


def test_float32_changes_of_a_bf16_base_survive_every_way_of_loading(tmp_path):
    model = with_adapters("llama", torch.bfloat16, default={})
    model.save_pretrained(tmp_path)
    expected = next(iter(s2ft_layers(model).values())).s2ft_delta["default"]
    assert expected.dtype == torch.float32
    for low_cpu_mem_usage in (False, True):
        base = causal_model("llama", torch.bfloat16)
        loaded = peft.PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(next(iter(s2ft_layers(loaded).values())).s2ft_delta["default"], expected)


def test_adapter_object_and_peft_write_the_same_model(tmp_path):
    model = with_adapters(default={"axis_pattern": {"down_proj": "output"}})
    fw.s2ft.Adapter.of_model(model).save(tmp_path / "ours")
    model.save_pretrained(tmp_path / "peft")

    for folder in ("ours", "peft"):
        loaded = peft.PeftModel.from_pretrained(causal_model("llama"), tmp_path / folder).eval()
        assert torch.equal(logits(loaded), logits(model)), folder
    fw.s2ft.Adapter.load(tmp_path / "peft").save(tmp_path / "again")
    again = fw.s2ft.Adapter.load(tmp_path / "again")
    assert {change.axis for change in again.modules.values()} == {"input", "output"}


@pytest.mark.parametrize("damage", ["config", "weights", "method", "newer"])
def test_a_damaged_adapter_is_one_sentence(damage, tmp_path):
    from safetensors.torch import load_file, save_file

    with_adapters(default={}).save_pretrained(tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    if damage == "config":
        config.write_text("{")
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "method":
        config.write_text(json.dumps({"peft_type": "LORA"}))
    else:
        save_file(load_file(weights), weights, metadata={"s2ft_format_version": "99"})

    with pytest.raises(CheckpointError, match="expected .*\\. .*\\."):
        fw.s2ft.Adapter.load(tmp_path)
